//! Signals to symbols and back. Everything is float32 arithmetic in one order, as numpy does it: the same codes and the
//! same values bit for bit, on every processor.
use crate::wide::wide;
use crate::{Error, Result};

/// What numpy adds to the width of the range, so that a constant signal is no division by zero.
const EPS: f32 = 1e-6;

/// 2^23: a small number plus this has its nearest whole number in the low bits.
const SHIFT: f32 = 8_388_608.;

/// Values that are worked on at a time.
const LANES: usize = 32;

/// The values that become the lowest and the highest level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Range {
    Record,                        // least and greatest of the signal
    Lead,                          // least and greatest of each lead
    Fixed { low: f32, high: f32 }, // what is beyond takes the outer levels
}

/// How a signal becomes symbols: code = min(floor(levels * n), levels - 1) of
/// n = clip((x - low) / (high - low + 1e-6), 0, 1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantiser {
    pub levels: usize, // 2 to 256
    pub first: u8,     // the byte of code 0
    pub range: Range,
    pub block: usize, // samples of a lead that stay together; 0 = all (lead after lead), 1 = sample after sample
}

/// How codes become values: (code + offset) / divisor * (high - low + eps) + low.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Back {
    pub offset: f32,
    pub divisor: f32,
    pub eps: f32,
}

impl Back {
    /// Finite numbers, and a divisor that divides.
    pub fn check(&self) -> Result<()> {
        let Self { offset, divisor, eps } = *self;
        if [offset, divisor, eps].iter().all(|value| value.is_finite()) && divisor != 0. {
            return Ok(());
        }
        Err(Error::Back { offset: offset.to_string(), divisor: divisor.to_string(), eps: eps.to_string() })
    }
}

impl Quantiser {
    /// The levels must fit a byte, and a fixed range must be one.
    pub fn check(&self) -> Result<()> {
        let Self { levels, first, .. } = *self;
        if !(2..=256).contains(&levels) {
            return Err(Error::Levels { levels });
        }
        if first as usize + levels > 256 {
            return Err(Error::First { first, levels });
        }
        if let Range::Fixed { low, high } = self.range
            && !(low < high && (high - low).is_finite())
        {
            return Err(Error::Bounds { low: low.to_string(), high: high.to_string() });
        }
        Ok(())
    }

    /// Appends the symbols of a signal (leads, samples) to `out` and returns (low, high): one pair, or with
    /// [`Range::Lead`] one for each lead. An error leaves `out` as it was.
    pub fn symbols(&self, signal: &[f32], leads: usize, out: &mut Vec<u8>) -> Result<Vec<[f32; 2]>> {
        let start = out.len();
        out.resize(start + signal.len(), 0);
        let ranges = self.symbols_into(signal, leads, &mut out[start..]);
        if ranges.is_err() {
            out.truncate(start);
        }
        ranges
    }

    /// [`Quantiser::symbols`] to a place of the signal's size.
    pub fn symbols_into(&self, signal: &[f32], leads: usize, out: &mut [u8]) -> Result<Vec<[f32; 2]>> {
        self.check()?;
        let samples = samples_of(signal.len(), leads)?;
        if out.len() != signal.len() {
            return Err(Error::Symbols { count: out.len(), wanted: signal.len() });
        }
        let ranges = match self.range {
            Range::Fixed { low, high } => vec![[low, high]],
            Range::Record => vec![bounds(signal, 0, samples)?],
            Range::Lead => {
                let each = signal.chunks_exact(samples).enumerate();
                each.map(|(lead, values)| bounds(values, lead, samples)).collect::<Result<_>>()?
            }
        };
        let order = Order::new(self.block, leads, samples);
        let mut row = vec![0; if order.whole() { 0 } else { samples }];
        for (lead, values) in signal.chunks_exact(samples).enumerate() {
            let [low, high] = ranges[lead.min(ranges.len() - 1)];
            let scale = Scale { low, width: high - low + EPS, levels: self.levels as f32, first: self.first };
            let codes = if order.whole() { &mut out[lead * samples..][..samples] } else { &mut row[..] };
            if !levels(values, scale, codes) {
                return Err(not_finite(values, lead, samples));
            }
            if !order.whole() {
                order.scatter(lead, &row, out);
            }
        }
        Ok(ranges)
    }

    /// Writes the values (leads, samples) of symbols to `out`; `ranges` is one pair (low, high) or one for each lead.
    /// `partial`: NaN where the symbols end early or are no levels, and what is too much is left out; else such symbols
    /// are an error.
    pub fn signal(
        &self,
        back: &Back,
        ranges: &[[f32; 2]],
        symbols: &[u8],
        leads: usize,
        partial: bool,
        out: &mut [f32],
    ) -> Result<()> {
        let samples = self.check_back(back, ranges, leads, out.len())?;
        if !partial {
            if symbols.len() != out.len() {
                return Err(Error::Symbols { count: symbols.len(), wanted: out.len() });
            }
            if highest(symbols, self.first) as usize >= self.levels {
                let wrong = |&byte: &u8| byte.wrapping_sub(self.first) as usize >= self.levels;
                let at = symbols.iter().position(wrong).unwrap_or_default();
                return Err(Error::NoLevel { at, byte: symbols[at], first: self.first, levels: self.levels });
            }
        }
        let order = Order::new(self.block, leads, samples);
        let mut row = vec![0; if order.whole() { 0 } else { samples }];
        for (lead, out) in out.chunks_exact_mut(samples).enumerate() {
            let [low, high] = ranges[lead.min(ranges.len() - 1)];
            let there = if order.whole() {
                let there = symbols.get(lead * samples..).unwrap_or_default();
                &there[..there.len().min(samples)]
            } else {
                order.gather(lead, symbols, &mut row)
            };
            let (now, missing) = out.split_at_mut(there.len());
            values(there, self, back, [low, high], now);
            missing.fill(f32::NAN);
        }
        Ok(())
    }

    /// The number of samples, where the way back can be gone.
    fn check_back(&self, back: &Back, ranges: &[[f32; 2]], leads: usize, size: usize) -> Result<usize> {
        self.check()?;
        back.check()?;
        let samples = samples_of(size, leads)?;
        if ranges.len() != 1 && ranges.len() != leads {
            return Err(Error::Ranges { count: ranges.len(), leads });
        }
        if let Some([low, high]) = ranges.iter().find(|range| !range.iter().all(|value| value.is_finite())) {
            return Err(Error::Bounds { low: low.to_string(), high: high.to_string() });
        }
        Ok(samples)
    }
}

/// Samples of each lead.
fn samples_of(values: usize, leads: usize) -> Result<usize> {
    match values.checked_div(leads) {
        Some(samples) if samples > 0 && samples * leads == values => Ok(samples),
        _ => Err(Error::Shape { values, leads }),
    }
}

/// Blocks shorter than this are copied sample by sample.
const SHORT: usize = 16;

/// The order of the symbols: a block of each lead in turn. The last blocks are shorter where theirs does not divide T.
struct Order {
    block: usize,
    leads: usize,
    samples: usize,
}

impl Order {
    fn new(block: usize, leads: usize, samples: usize) -> Self {
        Self { block: if block == 0 { samples } else { block.min(samples) }, leads, samples }
    }

    /// Whether every lead is in one piece.
    fn whole(&self) -> bool {
        self.block == self.samples
    }

    /// Of the first `count` symbols: (full blocks of a lead, where the piece of the block after them starts, its size).
    fn part(&self, lead: usize, count: usize) -> (usize, usize, usize) {
        let Self { block, leads, samples } = *self;
        let full = (count / (leads * block)).min(samples / block);
        let size = block.min(samples - full * block);
        let start = (full * block * leads + lead * size).min(count);
        (full, start, size.min(count - start))
    }

    /// Writes the symbols of one lead to their places in `out`.
    fn scatter(&self, lead: usize, row: &[u8], out: &mut [u8]) {
        let Self { block, leads, samples } = *self;
        let (full, start, size) = self.part(lead, leads * samples);
        let (blocks, last) = row.split_at(full * block);
        out[start..start + size].copy_from_slice(last);
        let places = &mut out[..full * block * leads];
        if block < SHORT {
            for at in 0..block {
                let places = places[lead * block + at..].iter_mut().step_by(leads * block);
                places.zip(blocks[at..].iter().step_by(block)).for_each(|(to, from)| *to = *from);
            }
        } else {
            let places = places.chunks_exact_mut(leads * block);
            for (to, from) in places.zip(blocks.chunks_exact(block)) {
                to[lead * block..][..block].copy_from_slice(from);
            }
        }
    }

    /// Those of one lead among the symbols; fewer than its samples where the symbols end early.
    fn gather<'a>(&self, lead: usize, symbols: &[u8], row: &'a mut [u8]) -> &'a [u8] {
        let Self { block, leads, samples } = *self;
        let (full, start, size) = self.part(lead, symbols.len().min(leads * samples));
        let (blocks, last) = row.split_at_mut(full * block);
        last[..size].copy_from_slice(&symbols[start..start + size]);
        let places = &symbols[..full * block * leads];
        if full > 0 && block < SHORT {
            for at in 0..block {
                let places = places[lead * block + at..].iter().step_by(leads * block);
                places.zip(blocks[at..].iter_mut().step_by(block)).for_each(|(from, to)| *to = *from);
            }
        } else {
            let places = places.chunks_exact(leads * block);
            for (from, to) in places.zip(blocks.chunks_exact_mut(block)) {
                to.copy_from_slice(&from[lead * block..][..block]);
            }
        }
        &row[..full * block + size]
    }
}

/// (low, high) of the values of all leads or of one, `first`.
fn bounds(values: &[f32], first: usize, samples: usize) -> Result<[f32; 2]> {
    let ([low, high], finite) = extremes(values);
    if !finite {
        return Err(not_finite(values, first, samples));
    }
    if (high - low).is_infinite() {
        return Err(Error::Bounds { low: low.to_string(), high: high.to_string() });
    }
    Ok([low, high])
}

/// Names the first value that is no number.
fn not_finite(values: &[f32], first: usize, samples: usize) -> Error {
    let at = values.iter().position(|value| !value.is_finite()).unwrap_or_default();
    Error::NotFinite { lead: first + at / samples, sample: at % samples, value: values[at].to_string() }
}

/// What a value is measured by.
#[derive(Clone, Copy)]
struct Scale {
    low: f32,
    width: f32,
    levels: f32,
    first: u8,
}

wide!(fn extremes(values: &[f32]) -> ([f32; 2], bool) = extremes_portable);
wide!(fn levels(values: &[f32], scale: Scale, out: &mut [u8]) -> bool = levels_portable);
wide!(fn highest(symbols: &[u8], first: u8) -> u8 = highest_portable);
wide!(fn values(symbols: &[u8], how: &Quantiser, back: &Back, range: [f32; 2], out: &mut [f32]) -> ()
    = values_portable);

/// 0 where x is finite.
#[inline(always)]
#[allow(clippy::eq_op)]
fn oddity(x: f32) -> u32 {
    (x - x).to_bits() // that of infinity or NaN is NaN
}

/// The least and the greatest value, and whether all are finite. Comparisons are written out: NaN then does no harm.
#[inline(always)]
fn extremes_portable(values: &[f32]) -> ([f32; 2], bool) {
    let (mut low, mut high, mut odd) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES], [0; LANES]);
    let mut see = |values: &[f32; LANES]| {
        for k in 0..LANES {
            let x = values[k];
            low[k] = if x < low[k] { x } else { low[k] };
            high[k] = if x > high[k] { x } else { high[k] };
            odd[k] |= oddity(x);
        }
    };
    let (chunks, rest) = values.as_chunks();
    chunks.iter().for_each(&mut see);
    if let Some(&last) = rest.last() {
        let mut padded = [last; LANES];
        padded[..rest.len()].copy_from_slice(rest);
        see(&padded);
    }
    let least = low.iter().fold(f32::INFINITY, |a, &b| if b < a { b } else { a });
    let greatest = high.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    ([least + 0., greatest + 0.], odd == [0; LANES]) // no minus zero
}

/// The symbol of every value; whether all values are finite.
#[inline(always)]
fn levels_portable(values: &[f32], scale: Scale, out: &mut [u8]) -> bool {
    // floor(v) is at most levels - 1 where v is at most this, and for smaller v it stays what it is.
    let top = scale.levels - 0.5;
    let mut odd = 0;
    for (&x, symbol) in values.iter().zip(out) {
        let n = (x - scale.low) / scale.width;
        let n = if n > 0. { n } else { 0. };
        let n = if n < 1. { n } else { 1. };
        let v = scale.levels * n;
        let v = if v < top { v } else { top };
        let shifted = v + SHIFT;
        let over = (shifted - SHIFT > v) as u32;
        *symbol = scale.first.wrapping_add((shifted.to_bits() - over) as u8);
        odd |= oddity(x);
    }
    odd == 0
}

/// The highest code.
#[inline(always)]
fn highest_portable(symbols: &[u8], first: u8) -> u8 {
    symbols.iter().fold(0, |most, &symbol| most.max(symbol.wrapping_sub(first)))
}

/// The value of every symbol; NaN where it is no level.
#[inline(always)]
fn values_portable(symbols: &[u8], how: &Quantiser, back: &Back, range: [f32; 2], out: &mut [f32]) {
    let (first, most, [low, high]) = (how.first, (how.levels - 1) as u8, range);
    let Back { offset, divisor, eps } = *back;
    let width = high - low + eps;
    for (&symbol, value) in symbols.iter().zip(out) {
        let code = symbol.wrapping_sub(first);
        let x = (code as f32 + offset) / divisor * width + low;
        *value = if code <= most { x } else { f32::NAN };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any bits: numbers of all sizes, and now and then infinity or NaN.
    fn noise(count: usize, finite: bool) -> Vec<f32> {
        let mut state = 1u64;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let value = f32::from_bits((state >> 32) as u32);
            if finite && !value.is_finite() { 1. } else { value }
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    #[test]
    fn wide_is_portable_bit_for_bit() {
        for size in (0..200).chain([2_500, 30_001]) {
            for finite in [true, false] {
                let signal = noise(size, finite);
                let ([a, b], fine) = extremes(&signal);
                let ([c, d], same) = extremes_portable(&signal);
                assert_eq!((a.to_bits(), b.to_bits(), fine), (c.to_bits(), d.to_bits(), same));
                assert_eq!(fine, signal.iter().all(|x| x.is_finite()));
                if size > 0 && fine {
                    let least = signal.iter().copied().fold(f32::INFINITY, f32::min);
                    let greatest = signal.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    assert_eq!([a, b], [least, greatest]);
                }
                for (low, width, count) in [(-1., 2.5, 26.), (-1e30, 3e38, 256.), (0., 1e-6, 2.), (1e-40, 1e-39, 7.)] {
                    let scale = Scale { low, width, levels: count, first: 250 };
                    let (mut wide, mut plain) = (vec![0; size], vec![0; size]);
                    assert_eq!(levels(&signal, scale, &mut wide), fine);
                    assert_eq!(levels_portable(&signal, scale, &mut plain), fine);
                    assert_eq!(wide, plain);
                    assert_eq!(highest(&wide, 97), highest_portable(&wide, 97));

                    let how = Quantiser { levels: 26, first: 97, range: Range::Record, block: 0 };
                    let back = Back { offset: 0.5, divisor: count, eps: EPS };
                    let (mut x, mut y) = (vec![0.; size], vec![0.; size]);
                    values(&wide, &how, &back, [low, low + width], &mut x);
                    values_portable(&wide, &how, &back, [low, low + width], &mut y);
                    let bits = |values: &[f32]| {
                        values.iter().map(|x| if x.is_nan() { 0 } else { x.to_bits() }).collect::<Vec<_>>()
                    };
                    assert_eq!(bits(&x), bits(&y));
                }
            }
        }
    }
}
