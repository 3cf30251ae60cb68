//! `gemba why`: who was asked for a block, what each answered, what is waited for; or how a topic fares, and through whom.

use cid::Cid;
use gemba_names::Name;
use serde_json::Value;

use super::name::resolve;
use super::session::url;
use super::{Context, network, pin};
use crate::api::types::{PinStatus, PubsubPeer, PubsubWhy, Trouble};
use crate::content::parse_cid;
use crate::error::{Code, Fail};
use crate::repo::Access;
use crate::{names, text, why};

/// What `why` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The block, by its CID or by the name that points to it; or the topic
    #[arg(value_name = "CID|NAME|TOPIC")]
    what: String,
    /// It is a topic, whatever it looks like
    #[arg(long)]
    topic: bool,
}

/// Tells why a block is or is not here, or how a topic fares.
///
/// # Errors
/// [`Code::NoDaemon`] for a topic, and for a block that is not here, if no daemon runs.
pub fn run(context: &Context, args: &Args) -> Result<(), Fail> {
    let named = if args.topic {
        None
    } else {
        name_in(&args.what)
    };
    let cid = match named {
        Some(name) => root_of(context, name)?,
        None if args.topic || !looks_like_a_cid(&args.what) => return topic(context, &args.what),
        None => parse_cid(&args.what)?,
    };
    let answer = match context.daemon()? {
        Some(daemon) => context.talk(daemon, async |client| {
            client.get_json(&format!("/v1/why/{cid}")).await
        })?,
        None => offline(context, &cid)?,
    };
    context.out.result(&answer, told)
}

/// The name that is asked about. In base 58 it might be a peer as well, so it is none then.
fn name_in(what: &str) -> Option<Name> {
    let is_base58 = what.starts_with('1');
    let (name, _) = names::split_path(what)?;
    (!is_base58).then_some(name)
}

/// The root of what a name points to.
fn root_of(context: &Context, name: Name) -> Result<Cid, Fail> {
    let found = resolve(context, name, false)?;
    names::root_of(found.value.as_bytes()).map_err(|cause| {
        Fail::new(Code::Failure, format!("{name}: {cause}"))
            .hint("`gemba name inspect` shows where it points")
    })
}

/// Whether it is a CID, or is meant to be one: 46 characters and more without a word in them.
fn looks_like_a_cid(what: &str) -> bool {
    let path = what.strip_prefix("/ipfs/").unwrap_or(what);
    parse_cid(path).is_ok()
        || what.starts_with("/ipfs/")
        || (path.len() >= 46 && path.bytes().all(|b| b.is_ascii_alphanumeric()))
}

fn topic(context: &Context, name: &str) -> Result<(), Fail> {
    let daemon = context.require_daemon()?;
    let path = url("/v1/pubsub/why", &[("topic", name)]);
    let why: PubsubWhy = context.talk(daemon, async |client| client.get_json(&path).await)?;
    context.out.result(&why, topic_told)
}

/// The account of a topic.
fn topic_told(why: &PubsubWhy) -> String {
    let mut lines = vec![text::shown(&why.summary).into_owned()];
    if let Some(seconds) = why.unwell_s {
        lines[0].push_str(&format!(
            ", for {}",
            text::span(seconds.saturating_mul(1000))
        ));
    }
    let subscribing = why.subscribers.len();
    let mut peers = format!(
        "peers     {subscribing} of {} connected subscribe",
        why.connected
    );
    if why.without_pubsub > 0 {
        peers.push_str(&format!("; {} speak no pubsub", why.without_pubsub));
    }
    lines.push(peers);
    lines.extend(
        why.subscribers
            .iter()
            .map(|peer| peer_line(peer, &why.topic)),
    );
    if let Some(health) = &why.health {
        let ago = |at: Option<u64>| match at {
            Some(seconds) => format!("the last {} ago", text::span(seconds.saturating_mul(1000))),
            None => "none yet".to_owned(),
        };
        lines.push(format!(
            "received  {}, {}",
            text::count(health.received, "message", "messages"),
            ago(health.last_received_s)
        ));
        lines.push(format!("sent      {}", ago(health.last_sent_s)));
        lines.push(format!(
            "lost      {} because too many came at once, {} because they were too old",
            health.shed, health.stale
        ));
        if let Some(seconds) = health.seen_pressure_s {
            lines.push(format!(
                "memory    messages are forgotten after {}: raise pubsub.seen_messages",
                text::span(seconds.saturating_mul(1000))
            ));
        }
    }
    lines.extend(why.troubles.iter().map(network::trouble_line));
    lines.join("\n")
}

fn peer_line(peer: &PubsubPeer, topic: &str) -> String {
    let place = if peer.mesh.iter().any(|name| name == topic) {
        "in mesh"
    } else {
        "beside"
    };
    let heard = peer.last_received_s.map_or("never".to_owned(), |seconds| {
        format!("{} ago", text::span(seconds.saturating_mul(1000)))
    });
    let mut line = format!(
        "{place:<9} {}: stream {}, {} waiting, heard of {heard}",
        peer.id,
        peer.stream,
        text::bytes(peer.queued_bytes)
    );
    if peer.stalls > 0 {
        line.push_str(&format!(
            ", stood still {}",
            text::count(peer.stalls, "time", "times")
        ));
    }
    line
}

/// Without a daemon nobody was asked; that a block is here can be seen all the same.
fn offline(context: &Context, cid: &cid::Cid) -> Result<Value, Fail> {
    let repo = context.repo(Access::Read)?;
    let pin = match pin::offline_status(&repo, cid) {
        Ok(pin) => Some(pin),
        Err(fail) if fail.code == Code::NotFound => None,
        Err(fail) => return Err(fail),
    };
    why::offline(&repo.store()?, cid, pin.as_ref()).ok_or_else(|| {
        let pinned = if pin.is_some() { ", though it is pinned" } else { "" };
        Fail::new(
            Code::NoDaemon,
            format!("block {cid} is not on this device{pinned}, and no daemon runs here that could ask others for it"),
        )
        .hint("start one with `gemba daemon`, then ask again")
    })
}

/// The answer as an account.
fn told(answer: &Value) -> String {
    let here = answer["here"].as_bool().unwrap_or(false);
    let mut lines = vec![first_line(answer, here)];
    if let Ok(pin) = serde_json::from_value::<PinStatus>(answer["pin"].clone()) {
        lines.push(pin_line(&pin));
    }
    if !here {
        lines.extend(want_lines(answer));
        let troubles: Vec<Trouble> =
            serde_json::from_value(answer["troubles"].clone()).unwrap_or_default();
        lines.extend(troubles.iter().map(network::trouble_line));
    }
    lines.join("\n")
}

fn first_line(answer: &Value, here: bool) -> String {
    let cid = answer["cid"].as_str().unwrap_or_default();
    if here {
        let bytes = text::bytes(answer["bytes"].as_u64().unwrap_or_default());
        return format!("{cid} is on this device ({bytes})");
    }
    match (answer["why"]["age_ms"].as_u64(), &answer["why"]) {
        (Some(age), _) => format!(
            "{cid} is not on this device; it has been wanted for {}",
            text::span(age)
        ),
        (None, Value::Null) => format!("{cid} is not on this device"),
        (None, _) => format!("{cid} is not on this device; it is wanted"),
    }
}

fn pin_line(pin: &PinStatus) -> String {
    let mut line = format!(
        "pin       {}, {}: {} here",
        pin.kind,
        pin::state(&pin.status),
        text::blocks(pin.blocks_done)
    );
    if pin.blocks_pending > 0 {
        line.push_str(&format!(", {} known to be missing", pin.blocks_pending));
    }
    if let Some(cause) = &pin.cause {
        line.push_str(&format!("; {cause}"));
    }
    line
}

fn want_lines(answer: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let why = &answer["why"];
    let peers = answer["peers"].as_u64().unwrap_or_default();
    if peers == 0 {
        lines.push(
            "peers     nobody is connected, so nobody can be asked: `gemba connect MULTIADDR`"
                .to_owned(),
        );
    }
    if why.is_null() {
        if answer["pin"].is_null() {
            let cid = answer["cid"].as_str().unwrap_or_default();
            lines.push(format!(
                "wanted    by nothing on this device at the moment: `gemba pin add {cid}` fetches it"
            ));
        }
        return lines;
    }
    let asked = why["asked"].as_array().map_or(&[][..], Vec::as_slice);
    lines.extend(asked.iter().map(asked_line));
    if asked.is_empty() && peers > 0 {
        let connected = text::peers(peers);
        lines.push(format!("asked     nobody yet, of {connected} connected"));
    }
    let gone = why["gone"].as_array().map_or(&[][..], Vec::as_slice);
    lines.extend(
        gone.iter()
            .filter_map(Value::as_str)
            .map(|peer| format!("asked     {peer}: it has gone away since")),
    );
    lines.push(waiting_line(why));
    lines
}

fn asked_line(asked: &Value) -> String {
    let peer = asked["peer"].as_str().unwrap_or_default();
    let ago = |field: &str| {
        let age = asked[field].as_u64();
        age.map_or(String::new(), |age| format!(" {} ago", text::span(age)))
    };
    let answer = match asked["answer"].as_str().unwrap_or_default() {
        "have-pending" => "no answer yet whether it has the block",
        "has" => "it has the block",
        "block-pending" => "asked for the block, which has not come yet",
        "dont-have" => "it does not have the block",
        "timed-out" => "it did not answer in time",
        "wrong-bytes" => "it sent something else than the block",
        other => other,
    };
    let answered = match asked["answer_age_ms"].as_u64() {
        Some(age) => format!(" (answered {} ago)", text::span(age)),
        None => String::new(),
    };
    format!("asked     {peer}{}: {answer}{answered}", ago("age_ms"))
}

fn waiting_line(why: &Value) -> String {
    let fetches_for_all;
    let waiting = match why["waiting_for"].as_str().unwrap_or_default() {
        "mate" => {
            fetches_for_all = mate(why["mate"].as_str());
            &fetches_for_all
        }
        "room" => "its turn: those who have it are busy with other blocks of the same transfer",
        "answers" => "answers from the peers that were asked",
        "block" => "the block, from a peer that was asked for it",
        "holder" => "somebody who has it",
        "release" => "this device's own disk, which has not written earlier blocks yet",
        other => other,
    };
    let mut line = format!("waits for {waiting}");
    if let Some(rounds) = why["rounds"].as_u64().filter(|rounds| *rounds > 0) {
        line.push_str(&format!(
            "; everybody connected was asked {} in vain",
            if rounds == 1 {
                "once".to_owned()
            } else {
                format!("{rounds} times")
            }
        ));
    }
    if let Some(retry) = why["retry_in_ms"].as_u64() {
        line.push_str(&format!("; next try in {}", text::span(retry)));
    }
    line
}

fn mate(peer: Option<&str>) -> String {
    match peer {
        Some(peer) => format!("{peer}, which fetches it for all devices of this site"),
        None => "the other devices of this site, which are told first what is fetched".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_topic_is_told_from_a_cid() {
        for cid in [
            "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy",
            "QmbWqxBEKC3P8tqsKc98xmWNzrzDtRLMiMPL8wBuTGsMnR",
            "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zx",
            "/ipfs/x",
        ] {
            assert!(looks_like_a_cid(cid), "{cid}");
        }
        for topic in ["line-1/alarms", "alarms", "plant hall 7", "/gemba/names"] {
            assert!(!looks_like_a_cid(topic), "{topic}");
        }
    }

    #[test]
    fn the_account_of_a_topic_tells_who_is_in_the_mesh_and_what_came_last() {
        let peer = |id: &str, mesh: &[&str], stream: &str| {
            json!({
                "id": id, "stream": stream, "topics": ["t"], "mesh": mesh, "queued_messages": 0, "queued_bytes": 0, "strikes": 0,
                "stalls": 1, "last_received_s": 2, "last_written_s": null,
            })
        };
        let why: PubsubWhy = serde_json::from_value(json!({
            "topic": "t", "summary": "t is read on this device and is degraded: the neighbours that subscribe take nothing", "read": true,
            "relayed": false, "unwell_s": 61, "connected": 3, "without_pubsub": 1, "troubles": [],
            "subscribers": [peer("12D3A", &["t"], "open"), peer("12D3B", &[], "paused")],
            "health": {
                "topic": "t", "state": "degraded", "cause": "", "peers": 2, "reachable": 1, "mesh": 1, "received": 7,
                "last_received_s": 5, "last_sent_s": null, "shed": 1, "stale": 2, "seen_pressure_s": 80,
            },
        }))
        .unwrap();
        assert_eq!(
            topic_told(&why).lines().collect::<Vec<_>>(),
            [
                "t is read on this device and is degraded: the neighbours that subscribe take nothing, for 61 s",
                "peers     2 of 3 connected subscribe; 1 speak no pubsub",
                "in mesh   12D3A: stream open, 0 bytes waiting, heard of 2 s ago, stood still 1 time",
                "beside    12D3B: stream paused, 0 bytes waiting, heard of 2 s ago, stood still 1 time",
                "received  7 messages, the last 5 s ago",
                "sent      none yet",
                "lost      1 because too many came at once, 2 because they were too old",
                "memory    messages are forgotten after 80 s: raise pubsub.seen_messages",
            ]
        );
    }

    #[test]
    fn the_account_tells_who_was_asked_and_what_is_waited_for() {
        let account = told(&json!({
            "cid": "bafyx", "here": false, "bytes": null, "summary": "", "wanted": true, "peers": 2, "pin": null, "troubles": [],
            "why": {
                "age_ms": 12_345, "waiting_for": "holder", "rounds": 2, "retry_in_ms": 4_000, "gone": ["12D3C"],
                "asked": [
                    { "peer": "12D3A", "age_ms": 11_000, "answer": "dont-have", "answer_age_ms": 10_900 },
                    { "peer": "12D3B", "age_ms": 3_000, "answer": "have-pending", "answer_age_ms": null },
                ],
            },
        }));
        assert_eq!(
            account.lines().collect::<Vec<_>>(),
            [
                "bafyx is not on this device; it has been wanted for 12 s",
                "asked     12D3A 11 s ago: it does not have the block (answered 10 s ago)",
                "asked     12D3B 3 s ago: no answer yet whether it has the block",
                "asked     12D3C: it has gone away since",
                "waits for somebody who has it; everybody connected was asked 2 times in vain; next try in 4 s",
            ]
        );
    }

    #[test]
    fn a_lonely_node_is_told_so() {
        let mut answer = json!({ "cid": "bafyx", "here": false, "peers": 0, "pin": null, "troubles": [], "why": null });
        let account = told(&answer);
        assert!(
            account.contains("nobody is connected") && account.contains("gemba pin add bafyx"),
            "{account}"
        );
        answer["why"] =
            json!({ "age_ms": 400, "waiting_for": "holder", "rounds": 1, "asked": [], "gone": [] });
        let account = told(&answer);
        assert!(
            account.contains("nobody is connected") && account.contains("asked once in vain"),
            "{account}"
        );
        assert!(!account.contains("of 0"), "{account}");
    }

    #[test]
    fn a_block_that_is_here_needs_no_more_words() {
        let account = told(
            &json!({ "cid": "bafyx", "here": true, "bytes": 1, "peers": 0, "pin": null, "troubles": [], "why": null }),
        );
        assert_eq!(account, "bafyx is on this device (1 byte)");
    }
}
