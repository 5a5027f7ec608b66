//! R-Drop (Liang et al. 2021, arXiv 2106.14448): every batch goes through the network twice at once, with other dropout
//! masks, and the loss asks both predictions to agree. It is half of the paper's, the mean over both passes, so that
//! without dropout it is the plain loss.

use justtrain_data::Batch;

/// The batch and once more itself behind it; a target's two rows stand side by side, as the loss wants them.
pub(crate) fn twice(mut batch: Batch) -> Batch {
    let tokens = batch.ids.len();
    for (ids, starts) in [(&mut batch.ids, &mut batch.starts), (&mut batch.source_ids, &mut batch.source_starts)] {
        let again: Vec<usize> = starts[1..].iter().map(|start| start + ids.len()).collect();
        ids.extend_from_within(..);
        starts.extend(again);
    }
    batch.target_rows = batch.target_rows.into_iter().flat_map(|row| [row, row + tokens]).collect();
    batch.target_ids = batch.target_ids.into_iter().flat_map(|id| [id, id]).collect();
    batch
}

#[cfg(test)]
mod tests {
    use justtrain_data::Sample;

    use super::*;

    #[test]
    fn both_copies_are_whole_and_targets_come_in_pairs() {
        let sample = |ids: Vec<u32>, source: Vec<u32>| Sample {
            target: vec![true; ids.len()],
            ids,
            source,
            row: 1,
            ..Sample::default()
        };
        let batch = twice(Batch::new(&[sample(vec![1, 2, 3], vec![6]), sample(vec![4, 5], vec![7, 8])]));
        assert_eq!(batch.ids, [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]);
        assert_eq!(batch.starts, [0, 3, 5, 8, 10]);
        assert_eq!((batch.source_ids, batch.source_starts), (vec![6, 7, 8, 6, 7, 8], vec![0, 1, 3, 4, 6]));
        assert_eq!(batch.target_rows, [0, 5, 1, 6, 3, 8]);
        assert_eq!(batch.target_ids, [2, 2, 3, 3, 5, 5]);
    }
}
