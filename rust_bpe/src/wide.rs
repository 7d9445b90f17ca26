//! One piece of portable code, compiled twice: as it is, and for processors with AVX2.

/// `wide!(fn name[T: Bound](argument: Type, ...) -> Type = body)` defines `name`, which calls `body`. `body` is
/// `#[inline(always)]`: its copy with AVX2 does the same operations in the same order, more of them at a time.
macro_rules! wide {
    (fn $name:ident $([$($generic:tt)*])? ($($arg:ident: $type:ty),*) -> $out:ty = $body:path) => {
        fn $name$(<$($generic)*>)?($($arg: $type),*) -> $out {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn wide$(<$($generic)*>)?($($arg: $type),*) -> $out {
                    $body($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: this processor has AVX2, which is all that the function asks for.
                    #[allow(unsafe_code)]
                    return unsafe { wide($($arg),*) };
                }
            }
            $body($($arg),*)
        }
    };
}
pub(crate) use wide;
