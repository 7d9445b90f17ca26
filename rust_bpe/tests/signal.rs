//! Signals to symbols and back against the plainest way to write it, over shapes, orders and sizes of values.
use ecgnb_bpe::{Back, Bpe, Error, Quantiser, Range};
use proptest::prelude::*;

const EPS: f32 = 1e-6;
const CENTRE: Back = Back { offset: 0.5, divisor: 26., eps: EPS };

fn quantiser(levels: usize, first: u8, range: Range, block: usize) -> Quantiser {
    Quantiser { levels, first, range, block }
}

/// (lead, sample) of every symbol.
fn order(leads: usize, samples: usize, block: usize) -> Vec<(usize, usize)> {
    let block = if block == 0 { samples } else { block };
    let mut order = Vec::new();
    for start in (0..samples).step_by(block) {
        for lead in 0..leads {
            order.extend((start..samples.min(start.saturating_add(block))).map(|at| (lead, at)));
        }
    }
    order
}

fn ranges(how: &Quantiser, signal: &[f32], leads: usize) -> Vec<[f32; 2]> {
    let of = |part: &[f32]| {
        [part.iter().copied().fold(f32::INFINITY, f32::min), part.iter().copied().fold(f32::NEG_INFINITY, f32::max)]
    };
    match how.range {
        Range::Record => vec![of(signal)],
        Range::Lead => signal.chunks(signal.len() / leads).map(of).collect(),
        Range::Fixed { low, high } => vec![[low, high]],
    }
}

fn plain(how: &Quantiser, signal: &[f32], leads: usize) -> Vec<u8> {
    let (samples, ranges) = (signal.len() / leads, ranges(how, signal, leads));
    let code = |(lead, at): (usize, usize)| {
        let [low, high] = ranges[lead % ranges.len()];
        let n = ((signal[lead * samples + at] - low) / (high - low + EPS)).clamp(0., 1.);
        how.first + (how.levels as f32 * n).floor().min(how.levels as f32 - 1.) as u8
    };
    order(leads, samples, how.block).into_iter().map(code).collect()
}

fn plain_back(
    how: &Quantiser,
    back: &Back,
    ranges: &[[f32; 2]],
    text: &[u8],
    leads: usize,
    samples: usize,
) -> Vec<f32> {
    let mut out = vec![f32::NAN; leads * samples];
    for ((lead, at), &symbol) in order(leads, samples, how.block).into_iter().zip(text) {
        let [low, high] = ranges[lead % ranges.len()];
        if (how.first as usize..how.first as usize + how.levels).contains(&(symbol as usize)) {
            let code = (symbol - how.first) as f32;
            out[lead * samples + at] = (code + back.offset) / back.divisor * (high - low + back.eps) + low;
        }
    }
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

/// Values of one kind: an ECG's, whole steps (on the borders of levels), huge, denormal, a constant.
fn values(size: usize) -> impl Strategy<Value = Vec<f32>> {
    let of = move |value: BoxedStrategy<f32>| prop::collection::vec(value, size);
    prop_oneof![
        of((-3f32..3.).boxed()),
        of((-260..=260i32).prop_map(|x| x as f32 / 26.).boxed()),
        of((-1.6e38f32..1.6e38).boxed()),
        of((0..2_000_000u32).prop_map(f32::from_bits).boxed()),
        of(prop_oneof![Just(0.), Just(-0.), -1f32..1., any::<i16>().prop_map(|x| x as f32 / 1000.)].boxed()),
        prop_oneof![Just(0f32), Just(-0.), Just(-1.25), Just(3e38), Just(1e-45)].prop_map(move |x| vec![x; size]),
    ]
}

fn how() -> impl Strategy<Value = Quantiser> {
    let levels = prop_oneof![Just(2usize), Just(26), Just(255), Just(256), 2..=256usize];
    let range = prop_oneof![
        Just(Range::Record),
        Just(Range::Lead),
        (-2f32..0., 0.001f32..3.).prop_map(|(low, width)| Range::Fixed { low, high: low + width }),
        Just(Range::Fixed { low: -1e38, high: 1e38 }),
    ];
    let block = prop_oneof![Just(0usize), Just(1), 2..40usize, Just(usize::MAX)];
    (levels, any::<u8>(), range, block)
        .prop_map(|(levels, first, range, block)| quantiser(levels, first.min((256 - levels) as u8), range, block))
}

fn signal() -> impl Strategy<Value = (usize, Vec<f32>)> {
    let shape = prop_oneof![(Just(1), 1..300usize), (1..40usize, Just(1)), (1..14usize, 1..120usize)];
    shape.prop_flat_map(|(leads, samples)| (Just(leads), values(leads * samples)))
}

/// 40 levels of letters, and tokens that are runs of each.
fn runs() -> Bpe {
    let alphabet: Vec<u8> = (60..100).collect();
    let run = |&symbol: &u8| [2, 3, 31, 64, 65, 200].map(|size| vec![symbol; size]);
    let merges: Vec<_> = alphabet.iter().flat_map(run).zip(40u32..).collect();
    Bpe::new(&alphabet, &merges).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn symbols_are_the_plain_ones((leads, signal) in signal(), how in how()) {
        let mut text = vec![1, 2];
        let found = how.symbols(&signal, leads, &mut text).unwrap();
        prop_assert_eq!(&text[..2], &[1, 2]);
        prop_assert_eq!(&text[2..], &plain(&how, &signal, leads));
        prop_assert_eq!(found, ranges(&how, &signal, leads));
    }

    #[test]
    fn values_are_the_plain_ones(
        (leads, signal) in signal(),
        how in how(),
        back in (0f32..1., 1f32..300., 0f32..0.1).prop_map(|(offset, divisor, eps)| Back { offset, divisor, eps }),
        change in -50..50isize,
        wrong in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let (samples, size) = (signal.len() / leads, signal.len());
        let mut text = Vec::new();
        let ranges = how.symbols(&signal, leads, &mut text).unwrap();
        let mut out = vec![7.; size];
        how.signal(&back, &ranges, &text, leads, false, &mut out).unwrap();
        prop_assert_eq!(bits(&out), bits(&plain_back(&how, &back, &ranges, &text, leads, samples)));

        text.resize(text.len().saturating_add_signed(change), how.first);
        if let Some((at, symbol)) = wrong && !text.is_empty() {
            let at = at.index(text.len());
            text[at] = symbol;
        }
        how.signal(&back, &ranges, &text, leads, true, &mut out).unwrap();
        prop_assert_eq!(bits(&out), bits(&plain_back(&how, &back, &ranges, &text, leads, samples)));
        let fits = text.len() == size && text.iter().all(|&x| x >= how.first && ((x - how.first) as usize) < how.levels);
        prop_assert_eq!(how.signal(&back, &ranges, &text, leads, false, &mut out).is_ok(), fits);
    }

    #[test]
    fn a_value_comes_back_within_half_a_level((leads, signal) in signal(), mut how in how()) {
        if let Range::Fixed { .. } = how.range { how.range = Range::Lead }
        let mut text = Vec::new();
        let ranges = how.symbols(&signal, leads, &mut text).unwrap();
        let mut out = vec![0.; signal.len()];
        let back = Back { divisor: how.levels as f32, ..CENTRE };
        how.signal(&back, &ranges, &text, leads, false, &mut out).unwrap();
        for (at, (x, y)) in signal.iter().zip(&out).enumerate() {
            let [low, high] = ranges[at / (signal.len() / leads) % ranges.len()].map(f64::from);
            let half = (high - low + 1e-6) / how.levels as f64 / 2.;
            let rounding = 4e-7 * (high - low + 1e-6 + low.abs().max(high.abs()));
            prop_assert!((f64::from(*x) - f64::from(*y)).abs() <= half + rounding, "{} {} {}", x, y, half);
        }
    }

    #[test]
    fn tokens_become_the_signal_of_their_symbols(
        (leads, signal) in signal(), block in 0..20usize, keep in 0..400usize, more in 0..3usize,
    ) {
        let (bpe, how) = (runs(), quantiser(40, 60, Range::Record, block));
        let mut text = Vec::new();
        let ranges = how.symbols(&signal, leads, &mut text).unwrap();
        let mut ids = bpe.encode_longest::<u32>(&text).unwrap();
        let (mut a, mut b) = (vec![5.; signal.len()], vec![6.; signal.len()]);
        bpe.decode_signal(&ids, &how, &CENTRE, &ranges, leads, false, &mut a).unwrap();
        how.signal(&CENTRE, &ranges, &text, leads, false, &mut b).unwrap();
        prop_assert_eq!(bits(&a), bits(&b));

        ids.truncate(keep);
        ids.extend(vec![45; more]);
        let text = bpe.decode(&ids).unwrap();
        let short: Vec<u16> = ids.iter().map(|&id| id as u16).collect();
        bpe.decode_signal(&short, &how, &CENTRE, &ranges, leads, true, &mut a).unwrap();
        how.signal(&CENTRE, &ranges, &text, leads, true, &mut b).unwrap();
        prop_assert_eq!(bits(&a), bits(&b));
        let whole = bpe.decode_signal(&ids, &how, &CENTRE, &ranges, leads, false, &mut a);
        let wanted = Error::Symbols { count: text.len(), wanted: signal.len() };
        prop_assert_eq!(whole, if text.len() == signal.len() { Ok(()) } else { Err(wanted) });
    }

    #[test]
    fn every_kind_of_id_decodes_alike(ids in prop::collection::vec(0..280u16, 0..200)) {
        let bpe = runs();
        let tokens: Vec<u8> = ids.iter().flat_map(|&id| bpe.token(id).unwrap()).copied().collect();
        prop_assert_eq!(bpe.length(&ids).unwrap(), tokens.len());
        prop_assert_eq!(bpe.decode(&ids).unwrap(), &tokens[..]);
        prop_assert_eq!(bpe.decode(&ids.iter().map(|&id| id as u32).collect::<Vec<_>>()).unwrap(), &tokens[..]);
        prop_assert_eq!(bpe.decode(&ids.iter().map(|&id| id as i32).collect::<Vec<_>>()).unwrap(), &tokens[..]);
        prop_assert_eq!(bpe.decode(&ids.iter().map(|&id| id as i64).collect::<Vec<_>>()).unwrap(), &tokens[..]);
        let mut text = vec![0; tokens.len() + 1];
        prop_assert_eq!(bpe.decode_into(&ids, &mut text[..tokens.len()]), Ok(()));
        prop_assert_eq!(&text[..tokens.len()], &tokens[..]);
        prop_assert_eq!(bpe.decode_into(&ids, &mut text), Err(Error::Changed));
        let lengths: Vec<_> = bpe.lengths().collect();
        prop_assert_eq!(ids.iter().map(|&id| lengths[id as usize] as usize).sum::<usize>(), tokens.len());
    }

    #[test]
    fn a_value_that_is_no_number_is_found(
        (leads, mut signal) in signal(),
        how in how(),
        places in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        bad in prop_oneof![Just(f32::NAN), Just(-f32::NAN), Just(f32::INFINITY), Just(f32::NEG_INFINITY)],
    ) {
        let places: Vec<_> = places.iter().map(|place| place.index(signal.len())).collect();
        places.iter().for_each(|&at| signal[at] = bad);
        let (at, samples) = (*places.iter().min().unwrap(), signal.len() / leads);
        let mut text = vec![9];
        let error = how.symbols(&signal, leads, &mut text).unwrap_err();
        prop_assert_eq!(error, Error::NotFinite { lead: at / samples, sample: at % samples, value: bad.to_string() });
        prop_assert_eq!(text, vec![9]);
    }
}

#[test]
fn symbols_lie_in_the_order_asked_for() {
    let signal = [0., 1., 2., 3., 4., 10., 11., 12., 13., 14.];
    let text = |block| {
        let mut text = Vec::new();
        let range = Range::Fixed { low: 0., high: 20. };
        quantiser(20, b'a', range, block).symbols(&signal, 2, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    };
    assert_eq!(text(0), "aabcdjklmn");
    assert_eq!(text(1), "ajakblcmdn");
    assert_eq!(text(2), "aajkbclmdn");
    assert_eq!(text(3), "aabjklcdmn");
    assert_eq!(text(9), text(0));
}

#[test]
fn a_wrong_quantiser_or_input_is_refused() {
    let fine = quantiser(26, 97, Range::Record, 0);
    let message =
        |how: Quantiser, signal: &[f32], leads| how.symbols(signal, leads, &mut Vec::new()).unwrap_err().to_string();
    assert_eq!(message(quantiser(1, 0, Range::Record, 0), &[0.], 1), "levels is 1: wanted 2 to 256");
    assert_eq!(message(quantiser(257, 0, Range::Record, 0), &[0.], 1), "levels is 257: wanted 2 to 256");
    assert_eq!(
        message(quantiser(26, 231, Range::Record, 0), &[0.], 1),
        "first is 231: with 26 levels, wanted 0 to 230, the byte of the lowest level"
    );
    for (low, high) in [(1., 1.), (2., 1.), (f32::NAN, 1.), (0., f32::INFINITY), (-3e38, 3e38)] {
        let error = message(Quantiser { range: Range::Fixed { low, high }, ..fine }, &[0.], 1);
        assert!(error.starts_with(&format!("the range is from {low} to {high} mV: wanted")), "{error}");
    }
    assert!(message(fine, &[-3e38, 3e38], 1).starts_with("the range is from -3"));
    let shape = |values, leads| {
        format!("the signal has {values} values in {leads} leads: wanted as many in each lead, at least one")
    };
    for (values, leads) in [(7, 2), (0, 1), (3, 0), (2, 3), (0, 0)] {
        assert_eq!(message(fine, &vec![0.; values], leads), shape(values, leads));
    }
    assert_eq!(
        message(fine, &[0., 1., 2., f32::NAN], 2),
        "lead 1 is NaN at sample 1: wanted finite values, in mV (fill gaps first)"
    );
    assert_eq!(fine.symbols_into(&[0., 1.], 1, &mut [0]), Err(Error::Symbols { count: 1, wanted: 2 }));
}

#[test]
fn wrong_symbols_and_tokens_are_refused() {
    let how = quantiser(26, 97, Range::Record, 0);
    let mut out = [0.; 4];
    let mut message = |ranges: &[[f32; 2]], text: &[u8]| {
        how.signal(&CENTRE, ranges, text, 2, false, &mut out).unwrap_err().to_string()
    };
    assert_eq!(message(&[[0., 1.]], b"abc"), "3 symbols for a signal of 4 values: wanted as many, or partial=True");
    assert_eq!(
        message(&[[0., 1.]], b"ab{z"),
        "symbol 123 ('{') at position 2 is no level: wanted 97 ('a') to 122 ('z'), or partial=True"
    );
    assert_eq!(message(&[[0., 1.]; 3], b"abcd"), "3 ranges for 2 leads: wanted one, or one a lead");
    assert_eq!(message(&[], b"abcd"), "0 ranges for 2 leads: wanted one, or one a lead");
    assert!(message(&[[0., f32::NAN]], b"abcd").starts_with("the range is from 0 to NaN mV"));
    for back in
        [Back { divisor: 0., ..CENTRE }, Back { eps: f32::NAN, ..CENTRE }, Back { offset: f32::INFINITY, ..CENTRE }]
    {
        let error = how.signal(&back, &[[0., 1.]], b"abcd", 2, false, &mut [0.; 4]).unwrap_err().to_string();
        assert!(error.ends_with("wanted finite values and a divisor other than 0"), "{error}");
    }

    let bpe = Bpe::new(b"abc", &[(b"abc", 3)]).unwrap();
    let mut out = [0.; 4];
    for partial in [false, true] {
        let decoded = bpe.decode_signal(&[3i64, -2], &how, &CENTRE, &[[0., 1.]], 2, partial, &mut out);
        assert_eq!(decoded.unwrap_err().to_string(), "token id -2 at position 1: wanted 0 to 3");
        let decoded = bpe.decode_signal(&[3u16, 3, 4], &how, &CENTRE, &[[0., 1.]], 2, partial, &mut out);
        assert_eq!(decoded.unwrap_err().to_string(), "token id 4 at position 2: wanted 0 to 3");
        let decoded = bpe.decode_signal(&[3u16, 0], &how, &CENTRE, &[[0., 1.]], 0, partial, &mut out);
        assert_eq!(decoded, Err(Error::Shape { values: 4, leads: 0 }));
    }
}

#[test]
fn tokens_without_end_are_no_reason_to_stop() {
    let long = vec![b'a'; 1 << 20];
    let bpe = Bpe::new(b"a", &[(long, 1)]).unwrap();
    let ids = vec![1u16; 1 << 17];
    assert_eq!(bpe.length(&ids).unwrap(), 1 << 37);
    let how = quantiser(26, 97, Range::Record, 3);
    let mut out = [0.; 10];
    bpe.decode_signal(&ids, &how, &CENTRE, &[[0., 26. - EPS]], 2, true, &mut out).unwrap();
    assert_eq!(out, [0.5; 10]);
    assert!(bpe.decode_signal(&ids, &how, &CENTRE, &[[0., 1.]], 2, false, &mut out).is_err());
}
