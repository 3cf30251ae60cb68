//! The plans with names. Each says what it is to show; `tests/sim.rs` asserts the figures.

use std::time::Duration;

use super::plan::{
    Breaks, Churn, Leave, Links, Manner, Partition, Plan, Publish, Readers, Topology,
};
use crate::config::{Config, RelayPolicy, TopicOptions};

/// A plan with a name.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    make: fn(&str) -> Plan,
}

impl Scenario {
    /// The plan, at its full size.
    #[must_use]
    pub fn plan(&self) -> Plan {
        (self.make)(self.name)
    }
}

/// The scenario of this name.
#[must_use]
pub fn scenario(name: &str) -> Option<Scenario> {
    SCENARIOS.iter().find(|s| s.name == name).copied()
}

/// All of them.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "quick",
        about: "20 nodes in full mesh, 1,000 B messages, beside flooding",
        make: |name| mesh(name, 1000),
    },
    Scenario {
        name: "small-messages",
        about: "the same with 200 B",
        make: |name| mesh(name, 200),
    },
    Scenario {
        name: "slow-node",
        about: "30 fast nodes and one 100 times slower, more messages than it can check",
        make: slow_node,
    },
    Scenario {
        name: "churn",
        about: "10 nodes, 5 % of packets lost, one leaves every other second",
        make: |name| churn(name, Leave::Disconnect),
    },
    Scenario {
        name: "restarts",
        about: "the same, but processes end and begin anew",
        make: |name| churn(name, Leave::Restart),
    },
    Scenario {
        name: "power-cuts",
        about: "the same, but nobody is told: the power goes",
        make: |name| churn(name, Leave::PowerCut),
    },
    Scenario {
        name: "line",
        about: "a, b and c in a line; b carries the topic and does not read it",
        make: line,
    },
    Scenario {
        name: "siege",
        about: "200 honest nodes, 800 hostile ones that spam, forge, graft, promise and keep silent",
        make: siege,
    },
    Scenario {
        name: "spam",
        about: "one of 21 nodes publishes 100 messages a second on a topic whose application rejects them",
        make: spam,
    },
    Scenario {
        name: "breaks",
        about: "1,000 streams that are reset, or fall silent without a word, in a swarm of 50",
        make: breaks,
    },
    Scenario {
        name: "echo",
        about: "24 hours of messages that come back after half to twice the time-to-live",
        make: echo,
    },
    Scenario {
        name: "partition",
        about: "40 nodes cut in two for half a minute",
        make: partition,
    },
    Scenario {
        name: "large",
        about: "1,000 nodes with 20 neighbours each",
        make: large,
    },
];

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A cache as tablets have it: what a run of some minutes needs.
fn small() -> crate::config::ConfigBuilder {
    Config::builder().seen_entries(1 << 13)
}

fn built(builder: crate::config::ConfigBuilder) -> Config {
    builder.build().unwrap_or_default()
}

fn mesh(name: &str, bytes: usize) -> Plan {
    Plan {
        config: built(small()),
        publish: Publish {
            messages: 400,
            every: 50 * MS,
            bytes,
        },
        compare_with_flooding: true,
        ..Plan::new(name, 20)
    }
}

/// A check takes 0.3 ms on the fast ones and 30 ms on the slow one, which so can check a third of what comes.
fn slow_node(name: &str) -> Plan {
    let mut plan = Plan {
        config: built(small()),
        slow: 100,
        publish: Publish {
            messages: 6000,
            every: 10 * MS,
            bytes: 200,
        },
        ..Plan::new(name, 31)
    };
    plan.pace.check = MS * 3 / 10;
    plan.pace.read = MS / 100;
    plan
}

fn churn(name: &str, how: Leave) -> Plan {
    let mut plan = Plan {
        config: built(small()),
        churn: Some(Churn {
            every: 2 * SECOND,
            away: (500 * MS, 3500 * MS),
            how,
        }),
        publish: Publish {
            messages: 2000,
            every: 50 * MS,
            bytes: 200,
        },
        ..Plan::new(name, 10)
    };
    plan.links.loss = 50;
    plan
}

fn line(name: &str) -> Plan {
    Plan {
        config: built(small().relay(RelayPolicy::Bridge { max_topics: 10 })),
        topology: Topology::Line,
        readers: Readers::Ends,
        publish: Publish {
            messages: 1000,
            every: 20 * MS,
            bytes: 200,
        },
        ..Plan::new(name, 3)
    }
}

fn siege(name: &str) -> Plan {
    let share = 114;
    Plan {
        config: built(small()),
        hostile: vec![
            (Manner::Silent, 800 - 6 * share),
            (Manner::Advertiser, share),
            (Manner::PromiseBreaker, share),
            (Manner::Forger, share),
            (Manner::Grafter, share),
            (Manner::Recoder, share),
            (Manner::Silent, share),
        ],
        topology: Topology::Random { dials: 30 },
        hostile_dials: 10,
        publish: Publish {
            messages: 600,
            every: 100 * MS,
            bytes: 200,
        },
        quiet: 25 * SECOND,
        ..Plan::new(name, 200)
    }
}

fn spam(name: &str) -> Plan {
    let options = TopicOptions::default().with_validate(true);
    Plan {
        config: built(small()),
        hostile: vec![(Manner::Spammer, 1)],
        topics: vec![("t".into(), options)],
        publish: Publish {
            messages: 600,
            every: 50 * MS,
            bytes: 200,
        },
        ..Plan::new(name, 20)
    }
}

fn breaks(name: &str) -> Plan {
    Plan {
        config: built(small()),
        topology: Topology::Random { dials: 6 },
        breaks: Some(Breaks {
            count: 1000,
            every: 500 * MS,
        }),
        publish: Publish {
            messages: 500,
            every: SECOND,
            bytes: 200,
        },
        quiet: 90 * SECOND,
        ..Plan::new(name, 50)
    }
}

fn echo(name: &str) -> Plan {
    let unsigned = TopicOptions::unsigned();
    Plan {
        config: built(small().topic("/gemba/*", unsigned.clone())),
        hostile: vec![(Manner::Echo, 2)],
        hostile_dials: 6,
        topics: vec![
            ("t".into(), TopicOptions::default()),
            ("/gemba/u".into(), unsigned),
        ],
        publish: Publish {
            messages: 24 * 60,
            every: 60 * SECOND,
            bytes: 64,
        },
        quiet: 300 * SECOND,
        ..Plan::new(name, 6)
    }
}

fn partition(name: &str) -> Plan {
    Plan {
        config: built(small()),
        topology: Topology::Random { dials: 8 },
        partition: Some(Partition {
            after: 10 * SECOND,
            lasts: 30 * SECOND,
            percent: 40,
        }),
        publish: Publish {
            messages: 1200,
            every: 100 * MS,
            bytes: 200,
        },
        quiet: 40 * SECOND,
        ..Plan::new(name, 40)
    }
}

fn large(name: &str) -> Plan {
    Plan {
        config: built(Config::builder().seen_entries(1 << 11)),
        topology: Topology::Random { dials: 10 },
        links: Links {
            latency: (5 * MS, 50 * MS),
            loss: 5,
            window: 256 * 1024,
        },
        publish: Publish {
            messages: 500,
            every: 50 * MS,
            bytes: 200,
        },
        ..Plan::new(name, 1000)
    }
}
