//! A bias of attention by how far the key lies from the query (T5, Raffel et al. 2019, arXiv 1910.10683): near distances have a
//! number for each head, far ones share theirs in buckets that widen.

use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::FlexTensor;

use crate::buffer::{contiguous, elements, shape2};

/// What is added to the scores.
#[derive(Debug, Clone)]
pub struct PositionBias {
    /// `[buckets, query heads]`.
    pub table: Tensor<2>,
    pub buckets: Buckets,
}

/// Which distances share a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buckets {
    pub count: usize,
    /// From here on all distances are in the last bucket.
    pub furthest: usize,
    /// Keys after a query have half of the buckets; else they are as near as the query itself.
    pub both_sides: bool,
}

impl Buckets {
    /// Of a key that comes so many places after its query, as transformers' `_relative_position_bucket`.
    pub fn of(self, distance: isize) -> usize {
        let (count, first) = match (self.both_sides, distance > 0) {
            (false, _) => (self.count, 0),
            (true, after) => (self.count / 2, if after { self.count / 2 } else { 0 }),
        };
        let away = if self.both_sides { distance.unsigned_abs() } else { distance.min(0).unsigned_abs() };
        let exact = count / 2;
        if away < exact {
            return first + away;
        }
        // In `f32`, as there: where a logarithm lies at an edge, rounding decides.
        let share = (away as f32 / exact as f32).ln() / (self.furthest as f64 / exact as f64).ln() as f32;
        first + (exact + (share * (count - exact) as f32) as usize).min(count - 1)
    }

    /// Of every distance from `1 - length` to `length - 1`, in this order.
    fn of_all(self, length: usize) -> impl Iterator<Item = usize> {
        let length = length as isize;
        (1 - length..length).map(move |distance| self.of(distance))
    }
}

impl PositionBias {
    /// `[heads, queries, keys]` by burn's own ops; `first` is where the first query stands among the keys.
    pub(crate) fn dense(&self, first: usize, queries: usize, keys: usize) -> Tensor<3> {
        let bucket = |query: usize, key: usize| self.buckets.of(key as isize - (first + query) as isize) as i64;
        let rows: Vec<i64> = (0..queries).flat_map(|query| (0..keys).map(move |key| bucket(query, key))).collect();
        let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [queries * keys]), &self.table.device());
        let heads = self.table.dims()[1];
        self.table.clone().select(0, rows).reshape([queries, keys, heads]).permute([2, 0, 1])
    }
}

/// The table spread out over the distances within sequences of at most `length` keys, head by head.
#[derive(Debug, Clone)]
pub(crate) struct ByDistance {
    /// `[heads, 2 · length − 1]`.
    numbers: Vec<f32>,
    length: usize,
    buckets: Buckets,
}

impl ByDistance {
    pub(crate) fn new(table: FlexTensor, buckets: Buckets, length: usize) -> Self {
        let table = contiguous(table);
        let [_, heads] = shape2(&table);
        let (rows, table): (Vec<usize>, _) = (buckets.of_all(length).collect(), elements(&table));
        let numbers = (0..heads).flat_map(|head| rows.iter().map(move |row| table[row * heads + head])).collect();
        Self { numbers, length, buckets }
    }

    fn width(&self) -> usize {
        2 * self.length - 1
    }

    /// Where the numbers of a query begin for the keys from `key` on.
    pub(crate) fn start(&self, query: usize, key: usize) -> usize {
        self.length - 1 + key - query
    }

    pub(crate) fn of_head(&self, head: usize) -> &[f32] {
        &self.numbers[head * self.width()..][..self.width()]
    }

    /// A gradient for each distance of one head.
    pub(crate) fn zeros(&self) -> Vec<f32> {
        vec![0.0; self.width()]
    }

    /// Adds the gradients of one head's distances up, by their buckets, in its column of the table's.
    pub(crate) fn gather(&self, head: usize, of_distances: &[f32], table: &mut [f32]) {
        let heads = self.numbers.len() / self.width();
        for (row, gradient) in self.buckets.of_all(self.length).zip(of_distances) {
            table[row * heads + head] += gradient;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From which distance on each bucket holds, by transformers' `_relative_position_bucket` of all from −300 to 300.
    #[test]
    fn buckets_are_those_of_transformers() {
        let after =
            [(0, 0), (1, 17), (2, 18), (3, 19), (4, 20), (5, 21), (6, 22), (7, 23), (8, 24), (12, 25), (16, 26)];
        let before = [(-300, 15), (-90, 14), (-63, 13), (-45, 12), (-31, 11), (-22, 10), (-15, 9), (-11, 8)];
        let far = [(23, 27), (32, 28), (46, 29), (64, 30), (91, 31)];
        let near = (-7..0).map(|distance: isize| (distance, distance.unsigned_abs()));
        check(
            Buckets { count: 32, furthest: 128, both_sides: true },
            before.into_iter().chain(near).chain(after).chain(far),
        );

        let far = [-300, -112, -98, -86, -76, -66, -58, -51, -45, -39, -34, -30, -26, -23, -20, -18];
        let near = (-15..=0).map(|distance: isize| (distance, distance.unsigned_abs()));
        let buckets = Buckets { count: 32, furthest: 128, both_sides: false };
        check(buckets, far.into_iter().zip((16..32).rev()).chain(near));

        let all = [(-300, 7), (-13, 6), (-8, 5), (-5, 4), (-3, 3), (-2, 2), (-1, 1), (0, 0)];
        check(Buckets { count: 8, furthest: 20, both_sides: false }, all);
        let all = [(-300, 3), (-6, 2), (-1, 1), (0, 0), (1, 5), (2, 6), (7, 7)];
        check(Buckets { count: 8, furthest: 20, both_sides: true }, all);
    }

    fn check(buckets: Buckets, edges: impl IntoIterator<Item = (isize, usize)>) {
        let edges: Vec<(isize, usize)> = edges.into_iter().collect();
        for distance in -300..=300 {
            let (_, expected) = edges.iter().rev().find(|(first, _)| *first <= distance).unwrap();
            assert_eq!(buckets.of(distance), *expected, "{buckets:?} {distance}");
        }
    }
}
