//! Real swarms behind the wall, over TCP on loopback and over memory.

use std::collections::HashSet;
use std::time::Duration;

use crate::common::{Node, Over, blocks, connect, over_each_transport, run_until};
use gemba_exchange::{Answer, Config, SessionOptions};

over_each_transport! {
    #[tokio::test]
    async fn s0_8_two_nodes_fetch_a_block_from_each_other;
    #[tokio::test]
    async fn a_thousand_blocks_travel_once;
    #[tokio::test]
    async fn a_want_that_nobody_has_ends_with_a_cause_and_is_pushed_when_it_arrives;
    #[tokio::test]
    async fn two_holders_share_the_work;
    #[tokio::test]
    async fn loss_of_a_holder_in_the_middle_costs_nothing_but_its_unsent_blocks;
    #[tokio::test]
    async fn a_transfer_survives_the_loss_of_the_connection_that_writes;
    #[tokio::test]
    async fn an_idle_connection_is_let_go_and_a_busy_one_is_kept;
    #[tokio::test]
    async fn closing_a_session_withdraws_its_wants_everywhere;
}

async fn s0_8_two_nodes_fetch_a_block_from_each_other(over: Over) {
    let mut a = Node::new(over, Config::default()).await;
    let mut b = Node::new(over, Config::default()).await;
    connect(&mut a, &mut b).await;
    let mine = blocks(1, 1, 100_000);
    let theirs = blocks(2, 1, 300);
    a.store(&mine);
    b.store(&theirs);
    a.want(&theirs);
    b.want(&mine);
    run_until(&mut [&mut a, &mut b], |nodes| {
        nodes[0].has(&theirs) && nodes[1].has(&mine)
    })
    .await;
    assert_eq!(a.exchange().counters().duplicates, 0);
    assert_eq!(b.exchange().counters().found, 1);
}

async fn a_thousand_blocks_travel_once(over: Over) {
    let mut a = Node::new(over, Config::default()).await;
    let mut b = Node::new(over, Config::default()).await;
    connect(&mut a, &mut b).await;
    let many = blocks(3, 1000, 20_000);
    a.store(&many);
    b.want(&many);
    run_until(&mut [&mut a, &mut b], |nodes| nodes[1].has(&many)).await;
    let counters = b.exchange().counters();
    assert_eq!(counters.found, 1000);
    assert_eq!((counters.duplicates, counters.unwanted), (0, 0));
    assert_eq!(b.exchange().load().found_bytes, 0);
    let ledger = b.exchange().peers();
    assert_eq!(ledger[0].bytes_in, 20_000_000);
}

async fn a_want_that_nobody_has_ends_with_a_cause_and_is_pushed_when_it_arrives(over: Over) {
    let mut a = Node::new(over, Config::default()).await;
    let mut b = Node::new(over, Config::default()).await;
    connect(&mut a, &mut b).await;
    let late = blocks(4, 1, 5000);
    b.want(&late);
    run_until(&mut [&mut a, &mut b], |nodes| {
        !nodes[1].unavailable.is_empty()
    })
    .await;
    let (cid, asked) = b.unavailable[0].clone();
    assert_eq!(&cid, late[0].cid());
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].peer, a.id());
    assert_eq!(asked[0].answer, Answer::DontHave);
    a.store(&late);
    run_until(&mut [&mut a, &mut b], |nodes| nodes[1].has(&late)).await;
}

async fn two_holders_share_the_work(over: Over) {
    let mut a = Node::new(over, Config::default()).await;
    let mut b = Node::new(over, Config::default()).await;
    let mut c = Node::new(over, Config::default()).await;
    connect(&mut a, &mut c).await;
    connect(&mut b, &mut c).await;
    let many = blocks(5, 300, 100_000);
    a.store(&many);
    b.store(&many);
    c.want(&many);
    run_until(&mut [&mut a, &mut b, &mut c], |nodes| nodes[2].has(&many)).await;
    let counters = c.exchange().counters();
    assert_eq!(counters.found, 300);
    assert!(counters.duplicates <= 30, "{} copies", counters.duplicates);
    for ledger in c.exchange().peers() {
        assert!(ledger.blocks_in >= 30, "{ledger:?}");
    }
}

async fn loss_of_a_holder_in_the_middle_costs_nothing_but_its_unsent_blocks(over: Over) {
    let mut a = Node::new(over, Config::default()).await;
    let mut b = Node::new(over, Config::default()).await;
    let mut c = Node::new(over, Config::default()).await;
    connect(&mut a, &mut c).await;
    connect(&mut b, &mut c).await;
    let many = blocks(6, 400, 50_000);
    a.store(&many);
    b.store(&many);
    c.want(&many);
    run_until(&mut [&mut a, &mut b, &mut c], |nodes| {
        nodes[2].found.len() > 50
    })
    .await;
    drop(a);
    run_until(&mut [&mut b, &mut c], |nodes| nodes[1].has(&many)).await;
    let unique: HashSet<_> = c.found.iter().collect();
    assert_eq!(unique.len(), c.found.len(), "each block is found once");
}

/// Two connections to one peer, and the one that carries the transfer is closed again and again.
async fn a_transfer_survives_the_loss_of_the_connection_that_writes(over: Over) {
    let mut a = Node::new(over, Config::default()).await;
    let mut b = Node::new(over, Config::default()).await;
    connect(&mut a, &mut b).await;
    let many = blocks(9, 600, 50_000);
    a.store(&many);
    b.want(&many);
    for part in 1..6 {
        b.dial_again(a.address.clone());
        run_until(&mut [&mut a, &mut b], |nodes| {
            nodes[0].connections() == 2
                && nodes[1].connections() == 2
                && nodes[1].found.len() >= part * 100
        })
        .await;
        let oldest = a.open[0];
        assert!(a.swarm.close_connection(oldest));
        run_until(&mut [&mut a, &mut b], |nodes| {
            nodes.iter().all(|n| n.connections() == 1)
        })
        .await;
    }
    run_until(&mut [&mut a, &mut b], |nodes| nodes[1].has(&many)).await;
    assert_eq!(b.found.len(), 600, "each block is found once");
    assert_eq!(a.exchange().load().served_bytes, 0);
}

async fn an_idle_connection_is_let_go_and_a_busy_one_is_kept(over: Over) {
    let mut a = Node::with_idle_timeout(over, Config::default(), Duration::from_millis(100)).await;
    let mut b = Node::with_idle_timeout(over, Config::default(), Duration::from_millis(100)).await;
    // Wanted before they connect: a connection may be idle for no longer than it takes to make the blocks.
    let many = blocks(7, 200, 100_000);
    a.store(&many);
    b.want(&many);
    connect(&mut a, &mut b).await;
    run_until(&mut [&mut a, &mut b], |nodes| nodes[1].has(&many)).await;
    run_until(&mut [&mut a, &mut b], |nodes| {
        nodes.iter().all(|n| n.connections() == 0)
    })
    .await;
    assert_eq!(b.exchange().load().peers, 0);
}

async fn closing_a_session_withdraws_its_wants_everywhere(over: Over) {
    let mut a = Node::new(over, Config::default()).await;
    let mut b = Node::new(over, Config::default()).await;
    connect(&mut a, &mut b).await;
    let never = blocks(8, 50, 10);
    let session = b
        .exchange_mut()
        .open_session(SessionOptions::default())
        .unwrap();
    let cids: Vec<_> = never.iter().map(|x| *x.cid()).collect();
    b.exchange_mut().want(session, cids).unwrap();
    run_until(&mut [&mut a, &mut b], |nodes| {
        nodes[0].exchange().load().served_wants == 50
    })
    .await;
    b.exchange_mut().close_session(session);
    run_until(&mut [&mut a, &mut b], |nodes| {
        nodes[0].exchange().load().served_wants == 0
    })
    .await;
    assert_eq!(b.exchange().load().wants, 0);
}
