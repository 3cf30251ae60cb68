//! What the generators promise.
#![allow(clippy::unwrap_used)]

use gemba_block::{codec, links};
use gemba_testkit::{
    Dag, Rng, Tree, check,
    dag::{TreeShape, content, fake_cid},
};
use std::collections::BTreeSet;

#[test]
fn random_dags_have_the_links_they_say_and_no_stray_block() {
    let mut codecs = BTreeSet::new();
    let mut shared = 0;
    check!(60, |rng| {
        let size = 1 + rng.length(200) as usize;
        let dag = Dag::random(rng, size);
        for block in &dag.blocks {
            assert_eq!(
                links(block).unwrap(),
                dag.links(block.cid()),
                "{}",
                block.cid()
            );
            assert_eq!(dag.get(block.cid()), Some(block));
            codecs.insert(block.cid().codec());
        }
        let order = dag.reading_order();
        let distinct: BTreeSet<_> = order.iter().collect();
        assert_eq!(distinct.len(), order.len());
        assert_eq!(order.len(), dag.blocks.len(), "all are reachable");
        shared += dag
            .blocks
            .iter()
            .map(|block| dag.links(block.cid()).len())
            .sum::<usize>()
            .saturating_sub(dag.blocks.len() - 1);
    });
    assert_eq!(
        codecs,
        BTreeSet::from([codec::RAW, codec::DAG_PB, codec::DAG_CBOR])
    );
    assert!(shared > 100, "children are shared");
}

#[test]
fn the_shapes_are_what_they_are_called() {
    assert_eq!(Dag::chain(100).blocks.len(), 101);
    assert_eq!(
        Dag::wide(1_000, 8).links(&Dag::wide(1_000, 8).root).len(),
        1_000
    );
    let balanced = Dag::balanced(3, 5, 16);
    assert_eq!(
        (balanced.blocks.len(), balanced.bytes() > 125 * 16),
        (125 + 25 + 5 + 1, true)
    );
    assert_eq!(Dag::diamonds(50).blocks.len(), 102 + 1);
    for dag in [
        Dag::chain(100),
        Dag::wide(1_000, 8),
        balanced,
        Dag::diamonds(50),
    ] {
        assert_eq!(dag.reading_order().len(), dag.blocks.len());
        assert!(
            dag.blocks
                .iter()
                .all(|block| links(block).unwrap() == dag.links(block.cid()))
        );
    }
    assert_ne!(fake_cid(codec::RAW, 1), fake_cid(codec::RAW, 2));
    assert_eq!(fake_cid(codec::DAG_CBOR, 7).codec(), codec::DAG_CBOR);
}

#[test]
fn one_seed_one_dag_and_one_tree() {
    let dag = |seed| Dag::random(&mut Rng::new(seed), 100).root;
    assert_eq!(dag(5), dag(5));
    assert_ne!(dag(5), dag(6));
    let tree = |seed| Tree::random(&mut Rng::new(seed), &TreeShape::default());
    assert_eq!(tree(5), tree(5));
    assert_ne!(tree(5), tree(6));
    assert_eq!(content(1_000, 9), content(1_000, 9));
    assert_eq!(
        content(300, 3)[..64],
        content(300, 3)[64..128],
        "every fourth seed repeats itself"
    );
}

#[cfg(unix)]
#[test]
fn a_tree_is_written_as_described_and_every_change_is_seen() {
    let base = std::env::temp_dir().join(format!("gemba-testkit-tree-{}", std::process::id()));
    std::fs::create_dir(&base).unwrap();
    let mut kinds = BTreeSet::new();
    let shape = TreeShape {
        file: 5_000,
        ..TreeShape::default()
    };
    check!(20, |rng| {
        let tree = Tree::random(rng, &shape);
        let path = base.join("tree");
        tree.write_to(&path).unwrap();
        assert_eq!(tree.difference(&path).unwrap(), None);
        for (below, entry) in tree.walk() {
            kinds.insert(match entry {
                Tree::File { len: 0, .. } => "empty file",
                Tree::File { .. } => "file",
                Tree::Dir(entries) if entries.is_empty() => "empty folder",
                Tree::Dir(_) => "folder",
                Tree::Symlink(_) => "symlink",
            });
            let changed = path.join(below);
            // Reading the whole tree back costs; one change in ten is enough.
            if matches!(entry, Tree::File { .. }) && rng.chance(1, 10) {
                let old = std::fs::read(&changed).unwrap();
                std::fs::write(&changed, [old.as_slice(), b"!"].concat()).unwrap();
                assert_eq!(tree.difference(&path).unwrap(), Some(changed.clone()));
                std::fs::write(&changed, old).unwrap();
            }
        }
        std::fs::write(path.join("stray"), b"").unwrap();
        assert_eq!(tree.difference(&path).unwrap(), Some(path.join("stray")));
        std::fs::remove_dir_all(&path).unwrap();
    });
    std::fs::remove_dir(&base).unwrap();
    assert_eq!(kinds.len(), 5, "{kinds:?}");
}
