//! A plan, from its first second to its report.

use std::collections::BTreeMap;
use std::time::Duration;

use super::node::NEVER;
use super::plan::{Break, Leave, Partition, Plan};
use super::report::{BreakFigures, Bytes, Latency, Report};
use super::watch::Sent;
use super::world::{Node, World};
use crate::Time;
use crate::core::Load;
use crate::hash::Dice;
use crate::metrics::Counters;

/// Until everybody knows that somebody left.
const PARTING: Duration = Duration::from_secs(3);

/// What is done from outside, and when.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Publish { topic: usize },
    Leave { node: u32, how: Leave },
    Return { node: u32, how: Leave },
    Cut(Partition),
    Heal,
    Break(Break),
    Hush,
}

impl Plan {
    /// Runs it. Takes as long as it takes: a second of a core for some hundred thousand copies of messages.
    #[must_use]
    pub fn run(&self) -> Report {
        let mut report = simulate(self);
        if self.compare_with_flooding {
            let flooding = simulate(&self.flooding());
            report.bytes.of_flooding = Some(report.bytes.per_node / flooding.bytes.per_node);
        }
        report
    }

    /// The same swarm, where everybody sends everything to everybody.
    fn flooding(&self) -> Self {
        let mut plan = self.clone();
        let knobs = &mut plan.config.knobs;
        knobs.degree = self.peers();
        knobs.degree_high = knobs.degree;
        knobs.idontwant_bytes = usize::MAX;
        plan
    }

    fn agenda(&self) -> Vec<(Time, Deed)> {
        let mut dice = Dice::new(self.seed ^ 0x61_67_65_6e_64_61);
        let mut agenda = Vec::new();
        let begin = self.warmup;
        let last = begin + self.publish.every * self.publish.messages;
        for i in 0..self.publish.messages {
            let topic = i as usize % self.topics.len().max(1);
            agenda.push((begin + self.publish.every * i, Deed::Publish { topic }));
        }
        if let Some(churn) = self.churn {
            let mut free = vec![Time::ZERO; self.honest];
            let mut at = begin + churn.every;
            while at < last && self.honest > 1 {
                let node = 1 + dice.below(self.honest - 1);
                let range = churn.away.1.saturating_sub(churn.away.0).as_millis() as usize;
                let away = churn.away.0 + Duration::from_millis(dice.below(range.max(1)) as u64);
                if free[node] <= at {
                    let (node, how) = (node as u32, churn.how);
                    agenda.push((at, Deed::Leave { node, how }));
                    agenda.push((at + away, Deed::Return { node, how }));
                    // It is there for a while before it leaves again.
                    free[node as usize] = at + away + Duration::from_secs(3);
                }
                at += churn.every;
            }
        }
        if let Some(partition) = self.partition {
            let at = begin + partition.after;
            agenda.push((at, Deed::Cut(partition)));
            agenda.push((at + partition.lasts, Deed::Heal));
        }
        if let Some(breaks) = self.breaks {
            for i in 0..breaks.count {
                let how = Break::ALL[i as usize % Break::ALL.len()];
                agenda.push((begin + breaks.every * i, Deed::Break(how)));
            }
        }
        let busy = agenda.iter().map(|(at, _)| *at).max().unwrap_or(begin);
        agenda.push((busy.max(last), Deed::Hush));
        agenda.sort_by_key(|(at, _)| *at);
        agenda
    }
}

fn simulate(plan: &Plan) -> Report {
    let mut world = World::new(plan);
    world.run_until(plan.warmup);
    let before = sent_bytes(&world);
    let mut after = before.clone();
    let mut mesh = 0.0;
    for (at, deed) in plan.agenda() {
        world.run_until(at);
        if matches!(deed, Deed::Hush) {
            mesh = mean_mesh(&mut world);
            world.run_until(at + Duration::from_secs(2));
            after = sent_bytes(&world);
        }
        world.act(deed);
    }
    let end = world.now + plan.quiet;
    world.run_until(end);
    world.last_look();
    world.report(mesh, &before, &after)
}

impl World {
    fn act(&mut self, deed: Deed) {
        match deed {
            Deed::Publish { topic } => {
                if let Some(n) = self.some_publisher() {
                    let bytes = self.plan.publish.bytes;
                    self.publish(n, topic, bytes);
                }
            }
            Deed::Leave { node, how } => self.leave(node, how),
            Deed::Return { node, how } => self.come_back(node, how),
            Deed::Cut(partition) => {
                let first = (self.plan.honest * partition.percent / 100) as u32;
                self.block(|a, b| (a < first) != (b < first));
            }
            Deed::Heal => self.heal(),
            Deed::Break(how) => self.break_one(how),
            Deed::Hush => self.hush(),
        }
    }

    /// All is quiet: nothing waits, nothing real was kept back. Then everybody leaves, and nothing is left.
    fn last_look(&mut self) {
        let seconds = self.now.as_secs();
        for n in 0..self.plan.honest as u32 {
            let Node::Honest(node) = &self.nodes[n as usize] else {
                continue;
            };
            if node.up {
                let load = node.core.load(&node.seen);
                self.watch.check_quiet(n, &load);
            }
            self.watch.check_silenced(n, node, seconds);
        }
        self.everybody_leaves();
    }

    fn everybody_leaves(&mut self) {
        let there: Vec<u32> = self
            .honest_nodes()
            .filter(|(_, node)| node.present)
            .map(|(n, _)| n)
            .collect();
        for n in &there {
            self.unsubscribe(*n);
        }
        self.run_until(self.now + PARTING);
        // Nobody reads any more: no relay carries anything, unless an enemy says that it reads.
        let topics = self.topics.clone();
        let enemies = !self.plan.hostile.is_empty();
        for n in there.iter().filter(|_| !enemies) {
            let core = &self.honest(*n).core;
            if topics.iter().any(|topic| core.health(topic).is_some()) {
                self.watch.breach(super::Rule::GoneIsGone, || {
                    format!("node {n} carries a topic that nobody reads")
                });
            }
        }
        for n in &there {
            self.leave(*n, Leave::Disconnect);
        }
        self.run_until(self.now + PARTING);
        for n in there {
            let node = self.honest(n);
            let load = node.core.load(&node.seen);
            self.watch.check_gone(n, &load);
        }
    }

    fn report(&self, mesh: f64, before: &[(u64, u64, u64)], after: &[(u64, u64, u64)]) -> Report {
        let honest = self.plan.honest;
        let slow = (self.plan.slow > 1).then_some(honest as u32 - 1);
        let (mut due, mut delivered, mut in_time) = (0_u64, 0_u64, 0_u64);
        let (mut fast, mut slowly) = (Vec::new(), Vec::new());
        let (mut all, mut memory) = (Counters::default(), Load::default());
        let mut duplicates = 0;
        let parts = self.parts();
        for (n, node) in self.honest_nodes() {
            all = all.plus(&node.counters());
            duplicates += node.duplicates();
            super::node::most(&mut memory, &node.most);
            for (message, sent) in self.watch.sent.iter().enumerate() {
                if !counts(sent, n) || !node.subscribes {
                    continue;
                }
                let latency = node.log.get(message).map_or(NEVER, |noted| noted.latency);
                if latency != NEVER {
                    let of = if slow == Some(n) {
                        &mut slowly
                    } else {
                        &mut fast
                    };
                    of.push(latency);
                }
                // What an author has not handed to the network when its process ends, nobody can deliver.
                let vanished = self.vanished(sent);
                let away = node.was_away(sent.at, sent.at + Duration::from_nanos(1));
                if slow == Some(n) || away || vanished || self.are_cut(sent, n, &parts) {
                    continue;
                }
                due += 1;
                delivered += u64::from(latency != NEVER);
                let within = u128::from(latency) <= self.plan.in_time.as_micros();
                in_time += u64::from(latency != NEVER && within);
            }
        }
        let taken = all.delivered + all.relayed;
        Report {
            scenario: self.plan.name.clone(),
            seed: self.plan.seed,
            honest,
            hostile: self.nodes.len() - honest,
            seconds: self.now.as_secs_f64(),
            steps: self.steps,
            published: self
                .watch
                .sent
                .iter()
                .filter(|sent| sent.left.is_some())
                .count() as u64,
            due,
            delivered,
            in_time,
            delivery: in_time as f64 / due.max(1) as f64,
            latency: Latency::of(fast),
            latency_of_slow: slow.map(|_| Latency::of(slowly)),
            receipts: self.receipts(),
            banned: self.watch.bans.len() as u64,
            banned_within_s: self.banned_within(),
            copies: (duplicates + taken) as f64 / taken.max(1) as f64,
            mesh,
            bytes: bytes(honest, before, after),
            checked_good: all.verified_good,
            checked_bad: all.verified_bad,
            shed: all.shed,
            stale: all.stale,
            stale_forwards: self.watch.stale_forwards,
            oldest_forward_ms: self.watch.oldest.as_secs_f64() * 1000.0,
            redelivered: self.watch.redelivered,
            invented: self.watch.invented,
            breaks: self.breaks(),
            memory,
            counters: all,
            breaches: self.watch.breaches(),
        }
    }

    /// Whether the author's process ended within a second: what lay in its buffers ended with it.
    fn vanished(&self, sent: &Sent) -> bool {
        let ends = self.plan.churn.is_some_and(|c| c.how != Leave::Disconnect);
        match &self.nodes[sent.origin as usize] {
            Node::Honest(node) if ends => node.was_away(sent.at, sent.at + Duration::from_secs(1)),
            _ => false,
        }
    }

    /// Whether a cut in the network lay between author and reader: no way leads from one to the other while it lasts.
    fn are_cut(&self, sent: &Sent, n: u32, parts: &[u32]) -> bool {
        self.plan.partition.is_some_and(|partition| {
            let from = self.plan.warmup + partition.after;
            let during = (from..from + partition.lasts).contains(&sent.at);
            during && parts[sent.origin as usize] != parts[n as usize]
        })
    }

    /// The part in which each honest node is during the cut: a node that knows only the other side is a part of its own.
    fn parts(&self) -> Vec<u32> {
        let honest = self.plan.honest;
        let percent = self.plan.partition.map_or(0, |p| p.percent);
        let first = (honest * percent / 100) as u32;
        let mut parts = vec![u32::MAX; honest];
        for start in 0..honest as u32 {
            if parts[start as usize] != u32::MAX {
                continue;
            }
            parts[start as usize] = start;
            let mut reached = vec![start];
            while let Some(n) = reached.pop() {
                for m in self.joined[n as usize].keys() {
                    if let Some(part) = parts.get_mut(*m as usize)
                        && *part == u32::MAX
                        && (*m < first) == (n < first)
                    {
                        *part = start;
                        reached.push(*m);
                    }
                }
            }
        }
        parts
    }

    /// From the publication of each message to its receipt.
    fn receipts(&self) -> Latency {
        let times = self.watch.sent.iter().filter_map(|sent| {
            let time = sent.left?.saturating_sub(sent.at);
            Some(time.as_micros().min(u128::from(NEVER - 1)) as u32)
        });
        Latency::of(times.collect())
    }

    /// From the first deed of a hostile node until the last neighbour banned one for the first time.
    fn banned_within(&self) -> Option<f64> {
        let since = self.watch.hostile_since?;
        let last = self.watch.bans.values().max()?;
        Some(last.saturating_sub(since).as_secs_f64())
    }

    fn honest_nodes(&self) -> impl Iterator<Item = (u32, &super::node::Honest)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter_map(|(n, node)| match node {
            Node::Honest(node) => Some((n as u32, &**node)),
            Node::Hostile(_) => None,
        })
    }

    fn breaks(&self) -> BTreeMap<Break, BreakFigures> {
        let mut breaks: BTreeMap<Break, BreakFigures> = BTreeMap::new();
        for broken in &self.watch.broken {
            let after = |at: Option<Time>| at.map(|at| at - broken.at);
            let figures = breaks.entry(broken.how).or_default();
            figures.add(after(broken.found), after(broken.healed));
        }
        breaks
    }
}

/// A message that left its author, at another.
fn counts(sent: &Sent, n: u32) -> bool {
    sent.left.is_some() && sent.origin != n
}

fn mean_mesh(world: &mut World) -> f64 {
    let topics = world.topics.clone();
    let mut members = 0;
    let mut meshes = 0;
    for n in 0..world.plan.honest as u32 {
        let node = world.honest(n);
        for topic in topics.iter().filter(|_| node.subscribes) {
            members += node.core.mesh(topic).len();
            meshes += 1;
        }
    }
    f64::from(members as u32) / f64::from(meshes.max(1))
}

/// Of each honest node: all bytes, those of messages, those of control.
fn sent_bytes(world: &World) -> Vec<(u64, u64, u64)> {
    let figures = world
        .honest_nodes()
        .map(|(_, node)| (node.bytes_out, node.message_bytes, node.control_bytes));
    figures.collect()
}

/// While messages were published, and a little longer.
fn bytes(honest: usize, before: &[(u64, u64, u64)], after: &[(u64, u64, u64)]) -> Bytes {
    let parts = || {
        let pairs = before.iter().zip(after);
        pairs.map(|(a, b)| (b.0 - a.0, b.1 - a.1, b.2 - a.2))
    };
    let all: u64 = parts().map(|(all, ..)| all).sum();
    let messages: u64 = parts().map(|(_, messages, _)| messages).sum();
    let control: u64 = parts().map(|(.., control)| control).sum();
    Bytes {
        per_node: all as f64 / honest.max(1) as f64,
        most: parts().map(|(all, ..)| all).max().unwrap_or_default(),
        messages: messages as f64 / all.max(1) as f64,
        control: control as f64 / all.max(1) as f64,
        of_flooding: None,
    }
}
