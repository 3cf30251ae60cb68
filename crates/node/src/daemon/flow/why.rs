//! Why something is not here yet, in words: for whoever waits, and for whoever ran out of patience.

use std::time::Duration;

use cid::Cid;
use gemba_exchange::{Answer, Asked, WaitingFor, Why};
use libp2p_identity::PeerId;

use super::Ctx;
use crate::api::types::Trouble;
use crate::text;

/// What is known around a block that does not come.
pub struct Around<'a> {
    /// What the exchange knows of it; `None` if nobody wants it at the moment.
    pub why: Option<&'a Why>,
    /// Connected peers.
    pub peers: usize,
    /// The exchange's clock.
    pub now: Duration,
    /// What keeps others away, newest first.
    pub troubles: &'a [Trouble],
}

/// As [`block`], with what the flows know.
pub fn in_flow(cid: &Cid, ctx: &Ctx<'_>) -> String {
    block(&Around {
        why: ctx.exchange.why(cid).as_ref(),
        peers: ctx.peers,
        now: ctx.exchange.now(),
        troubles: &ctx.known.troubles(ctx.now),
    })
}

/// Why a block that is waited for does not come.
pub fn block(around: &Around<'_>) -> String {
    if around.peers == 0 {
        return nobody_connected(around.troubles);
    }
    let Some(why) = around.why else {
        return format!(
            "{} connected, and nobody is asked at the moment",
            text::peers(around.peers as u64)
        );
    };
    let since = |at: Duration| around.now.saturating_sub(at).as_secs_f64();
    match why.waiting_for {
        WaitingFor::Block => match why.asked.iter().find(|a| a.answer == Answer::BlockPending) {
            Some(asked) => format!(
                "{} was asked for it {:.1} s ago and has not sent it",
                asked.peer,
                since(asked.at)
            ),
            None => answers(&why.asked, &why.gone),
        },
        WaitingFor::Mate => match why.mate {
            Some(mate) => format!("{mate}, a device of this site, fetches it for all of them"),
            None => "the other devices of this site are told first that it is fetched".to_owned(),
        },
        WaitingFor::Room => {
            "it waits for its turn: the peers that have it are busy with what was asked for before"
                .to_owned()
        }
        WaitingFor::Release => {
            "it waits for the disk, which has not taken what arrived before".to_owned()
        }
        _ => answers(&why.asked, &why.gone),
    }
}

/// Who was asked, by what each said.
fn answers(asked: &[Asked], gone: &[PeerId]) -> String {
    if gone.is_empty() && asked.iter().all(|a| a.answer == Answer::DontHave) {
        return match asked.len() {
            0 => "nobody was asked yet".to_owned(),
            1 => "the only peer asked does not have it".to_owned(),
            count => format!("none of the {count} peers asked has it"),
        };
    }
    let count = |answers: &[Answer]| asked.iter().filter(|a| answers.contains(&a.answer)).count();
    let parts = [
        (count(&[Answer::DontHave]), "said that they have not got it"),
        (count(&[Answer::HavePending]), "have not answered yet"),
        (count(&[Answer::TimedOut]), "did not answer in time"),
        (count(&[Answer::WrongBytes]), "sent something else"),
        (
            count(&[Answer::Has, Answer::BlockPending]),
            "have it and have not sent it",
        ),
        (gone.len(), "left after they were asked"),
    ];
    let one = match (asked, gone) {
        ([], [_]) => Some("left after it was asked"),
        ([only], []) => Some(match only.answer {
            Answer::HavePending => "has not answered yet",
            Answer::TimedOut => "did not answer in time",
            Answer::WrongBytes => "sent something else",
            Answer::Has | Answer::BlockPending => "has it and has not sent it",
            _ => "does not have it",
        }),
        _ => None,
    };
    if let Some(what) = one {
        return format!("the only peer asked {what}");
    }
    let told: Vec<String> = parts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    format!(
        "of {} asked, {}",
        text::peers((asked.len() + gone.len()) as u64),
        told.join(", ")
    )
}

/// Nobody to ask, and what is known of those who might be.
pub fn nobody_connected(troubles: &[Trouble]) -> String {
    let remote = troubles
        .iter()
        .find(|trouble| trouble.direction == "out" || trouble.direction == "in");
    match remote {
        Some(trouble) => format!(
            "no peer is connected; {} could not be reached or was turned away: {}{}",
            trouble.address,
            trouble.cause,
            next_try(trouble)
        ),
        None => "no peer is connected".to_owned(),
    }
}

/// When what failed is tried again, to be put behind its cause; nothing if it is not, or if the next try is under way.
pub fn next_try(trouble: &Trouble) -> String {
    trouble.retry_in_s.map_or(String::new(), |seconds| {
        format!(
            " (next try in {})",
            text::span(seconds.saturating_mul(1000))
        )
    })
}

/// What to do about a block that does not come.
pub fn hint(cid: &Cid, peers: usize) -> String {
    if peers == 0 {
        "`gemba connect MULTIADDR`, and `gemba status` for what keeps peers away".to_owned()
    } else {
        format!("`gemba why {cid}` tells who was asked; a longer --timeout waits longer")
    }
}
