//! The answer to "why is this block not here yet?".

use gemba_block::Cid;
use libp2p_identity::PeerId;

use super::Client;
use super::want::{Phase, Want};
use crate::core::site::Turn;
use crate::core::{SessionId, Time};

/// Who was asked for a block, what was answered, what is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Why {
    /// The block.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::display"))]
    pub cid: Cid,
    /// Sessions that want it.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub sessions: Vec<SessionId>,
    /// Since when.
    pub since: Time,
    /// Everybody who was asked, in order.
    pub asked: Vec<Asked>,
    /// Peers that were asked and left.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::display_all"))]
    pub gone: Vec<PeerId>,
    /// What happens next.
    pub waiting_for: WaitingFor,
    /// The device of the same site whose turn it is to fetch it.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::display_some"))]
    pub mate: Option<PeerId>,
    /// Rounds in which everybody was asked in vain.
    pub rounds: u32,
    /// When everybody is asked again, if nobody has it.
    pub retry_at: Option<Time>,
}

/// One peer that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Asked {
    /// Who.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::display"))]
    pub peer: PeerId,
    /// When.
    pub at: Time,
    /// What came back.
    pub answer: Answer,
    /// When.
    pub answered_at: Option<Time>,
}

/// What a peer answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Answer {
    /// Nothing yet, it was asked whether it has the block.
    HavePending,
    /// It has the block.
    Has,
    /// Nothing yet, it was asked for the block.
    BlockPending,
    /// It has not.
    DontHave,
    /// Nothing in time.
    TimedOut,
    /// Something else than the block.
    WrongBytes,
}

/// What a want waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum WaitingFor {
    /// Its turn: the windows of those who have it are full, or it comes later in its session.
    Room,
    /// Answers whether somebody has it.
    Answers,
    /// The block, from a peer that was asked for it.
    Block,
    /// A device of the same site, which fetches it for the others: [`Why::mate`].
    Mate,
    /// Somebody who has it.
    Holder,
    /// The owner: found blocks fill the budget and were not released.
    Release,
}

impl Client {
    pub(in crate::core) fn why(&self, cid: &Cid) -> Option<Why> {
        let want = self.wants.get(cid)?;
        Some(Why {
            cid: *cid,
            sessions: want.sessions.clone(),
            since: want.since,
            asked: self.asked(want),
            gone: want.gone.clone(),
            waiting_for: match want.phase {
                _ if self.paused => WaitingFor::Release,
                Phase::Queued => WaitingFor::Room,
                Phase::Searching => WaitingFor::Answers,
                Phase::Fetching => WaitingFor::Block,
                Phase::Unavailable => WaitingFor::Holder,
                Phase::Waiting => WaitingFor::Mate,
            },
            mate: match want.shared.turn {
                Turn::Of(key) => self.peers.get(&key).map(|peer| peer.id),
                _ => None,
            },
            rounds: want.rounds,
            retry_at: want.retry_at,
        })
    }

    pub(super) fn asked(&self, want: &Want) -> Vec<Asked> {
        want.asks
            .iter()
            .filter_map(|ask| {
                Some(Asked {
                    peer: self.peers.get(&ask.peer)?.id,
                    at: ask.at,
                    answer: ask.answer,
                    answered_at: ask.answered_at,
                })
            })
            .collect()
    }
}
