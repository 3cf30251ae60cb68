//! What crosses the API as JSON. A schema that only grows: fields are added, never renamed or removed (DESIGN §5).

use gemba_unixfs::{CidVersion, Profile, ProfileError, StatKind};
use serde::{Deserialize, Serialize};

use crate::error::{Code, Fail};
use crate::lines::Uplink;
use crate::text;

/// `id`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Id {
    /// The peer id.
    pub id: String,
    /// Listen addresses, each with `/p2p/…`.
    pub addresses: Vec<String>,
    /// The agent string that peers see.
    pub agent: String,
    /// What the other side speaks of ours.
    #[serde(default)]
    pub protocols: Vec<String>,
}

/// One connected peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// The peer id.
    pub id: String,
    /// The address of the connection that is used.
    pub address: String,
    /// `tcp`, `ws` …
    pub transport: String,
    /// Last measured round trip; null until the first ping came back.
    pub rtt_ms: Option<f64>,
    /// The agent string it sent; empty until identify came.
    pub agent: String,
    /// Bytes received from it by the exchange.
    pub bytes_in: u64,
    /// Bytes sent to it by the exchange.
    pub bytes_out: u64,
    /// `in` or `out`: who dialed.
    pub direction: String,
    /// Whether it belongs to the same site, and shares out with this device what is fetched from outside.
    #[serde(default)]
    pub same_site: bool,
    /// Seconds since the connection was made.
    pub connected_s: u64,
}

/// Blocks and bytes of the repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoSize {
    /// Blocks held.
    pub blocks: u64,
    /// Their payload in bytes.
    pub bytes: u64,
    /// Bytes on disk.
    #[serde(default)]
    pub disk_bytes: u64,
}

/// Bytes of the exchange since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Block bytes received.
    pub bytes_in: u64,
    /// Block bytes sent.
    pub bytes_out: u64,
    /// Blocks received.
    #[serde(default)]
    pub blocks_in: u64,
    /// Blocks sent.
    #[serde(default)]
    pub blocks_out: u64,
    /// Blocks received more than once.
    #[serde(default)]
    pub duplicates: u64,
}

/// A peer or address that could not be reached, or that was turned away, or something wrong on this device, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// The address; of what is wrong on this device, the folder, the block or the pin.
    pub address: String,
    /// The peer, where it is known.
    pub peer: Option<String>,
    /// `in` or `out`; `local` for this device itself.
    pub direction: String,
    /// A word that scripts can match: `wrong_swarm_key`, `refused`, `unreachable`, `disk_full`, `damaged_block`, `pin` …
    pub kind: String,
    /// The cause in words.
    pub cause: String,
    /// Seconds since it was last seen.
    pub age_s: u64,
    /// Times it happened.
    pub count: u64,
    /// Seconds until the next try, where there will be one.
    pub retry_in_s: Option<u64>,
}

/// `status`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The peer id.
    pub id: String,
    /// Connected peers.
    pub peers: u64,
    /// Whether a swarm key is in force.
    pub private: bool,
    /// The key's fingerprint as Kubo prints it; null in a public swarm.
    pub fingerprint: Option<String>,
    /// The repository.
    pub repo: RepoSize,
    /// The exchange.
    pub transfer: Transfer,
    /// `ok`, `alone` (no peer), or `degraded`.
    pub health: String,
    /// Whether a daemon answered; false when the command read the repository itself.
    pub daemon: bool,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// What went wrong lately, newest first.
    pub troubles: Vec<Trouble>,
    /// Pins by state.
    pub pins: PinCounts,
    /// Resident memory of the daemon in bytes.
    pub rss_bytes: u64,
    /// Largest resident memory so far, in bytes.
    pub rss_max_bytes: u64,
    /// Memory of what is being received.
    #[serde(default)]
    pub receiving: Receiving,
    /// What keeps the store in order did since the daemon started.
    #[serde(default)]
    pub kept: Kept,
    /// Messages by topic, in short.
    #[serde(default)]
    pub pubsub: PubsubCounts,
    /// The site that this device belongs to.
    #[serde(default)]
    pub site: SiteView,
    /// The DHT, which names go by.
    #[serde(default)]
    pub dht: DhtView,
    /// The lines: the LAN, then the uplink. None without a daemon.
    #[serde(default)]
    pub lines: Vec<LineView>,
    /// Events on this device.
    #[serde(default)]
    pub events: EventCounts,
}

/// Events on this device, in short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventCounts {
    /// Streams, gemba's own among them.
    pub streams: u64,
    /// Feeds: one an author and stream.
    pub feeds: u64,
    /// Of those: their author wrote two histories.
    pub forks: u64,
    /// Second histories that were found since the daemon started.
    pub new_forks: u64,
    /// Batches of this node that came back from others and were not here, since the daemon started.
    pub returned: u64,
    /// Some of them were written since this node was started: another device has its identity.
    #[serde(default)]
    pub cloned: bool,
    /// The files were copied since they were written last: events go on in new epochs.
    pub copied: bool,
    /// Events.
    pub events: u64,
    /// Their bytes on disk.
    pub bytes: u64,
    /// Batches that are known to be damaged on this disk.
    pub damaged: u64,
    /// Segments whose index was found damaged on this disk since the daemon started, and made anew: no event is missing.
    pub damaged_indexes: u64,
    /// Writes that failed since the daemon started.
    pub failures: u64,
    /// Events of the fast class that were dropped since the daemon started.
    pub fast_dropped: u64,
    /// Consumers of this node.
    pub consumers: u64,
    /// Events that those which are open have not acknowledged.
    pub lag: u64,
    /// Nothing is written any more, since a write failed; see `troubles`.
    pub stopped: bool,
    /// `events.max_size` is reached.
    pub full: bool,
}

/// A line: what it may carry, and what it carried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineView {
    /// `lan`; `wan` or `metered`, whichever the uplink is.
    pub line: String,
    /// Bytes a second that may be sent; null: no limit.
    pub up_limit: Option<u64>,
    /// Bytes a second that may come; null: no limit.
    pub down_limit: Option<u64>,
    /// Bytes that came through sockets since the daemon started.
    pub bytes_in: u64,
    /// Bytes that were sent.
    pub bytes_out: u64,
}

/// `uplink`
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct UplinkRequest {
    /// Of what kind it is.
    pub uplink: Uplink,
}

/// How this device takes part in the DHT.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhtView {
    /// `server` or `client`; empty if it is off, or no daemon runs.
    pub mode: String,
    /// Servers that are known.
    pub servers: u64,
    /// Records of names that are kept for others.
    pub records: u64,
}

/// The devices that share out what they fetch from outside (specs/site.md).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteView {
    /// `[network] site`: a label, `auto` or `none`.
    pub label: String,
    /// Connected devices of the same site.
    pub mates: u64,
}

/// How the topics that are read on this device fare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PubsubCounts {
    /// Whether a daemon takes part.
    pub enabled: bool,
    /// Topics that are read.
    pub topics: u64,
    /// Of those: nobody who is connected subscribes, too.
    pub isolated: u64,
    /// Of those: something is wrong; see `troubles`.
    pub degraded: u64,
}

/// A line of `pubsub sub`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PubsubLine {
    /// A message.
    Message(PubsubMessage),
    /// So many messages were dropped at this place because the reader was slow.
    Lagged {
        /// How many.
        lagged: u64,
    },
}

/// A message of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PubsubMessage {
    /// Who signed it; null on topics that are not signed.
    pub from: Option<String>,
    /// The author's number, in decimal: it does not fit into a JSON number. Null on topics that are not signed.
    pub seqno: Option<String>,
    /// Where it was published.
    pub topic: String,
    /// The payload in base64.
    pub data: String,
}

/// What `pubsub pub` prints for each message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PubsubSent {
    /// Where.
    pub topic: String,
    /// Its id in hex: author and number.
    pub id: String,
    /// Its number, in decimal; null on topics that are not signed.
    pub seqno: Option<String>,
    /// Neighbours to whom it is on its way, at least one.
    pub peers: u64,
    /// Neighbours who were too slow to get it.
    pub refused: u64,
}

/// A topic that is read on this device, and how it fares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PubsubTopic {
    /// Its name.
    pub topic: String,
    /// `ok`, `isolated` (nobody who is connected subscribes) or `degraded`.
    pub state: String,
    /// What is wrong, in words; null if nothing is.
    pub cause: Option<String>,
    /// Neighbours that subscribe.
    pub peers: u64,
    /// Of those: with a stream that stands.
    pub reachable: u64,
    /// Of those: in the mesh.
    pub mesh: u64,
    /// New messages that came.
    pub received: u64,
    /// Seconds since the last of them.
    pub last_received_s: Option<u64>,
    /// Seconds since a message was sent on, or an own one sent.
    pub last_sent_s: Option<u64>,
    /// Messages that were dropped because too many waited to be verified.
    pub shed: u64,
    /// Messages that were dropped because they were too old.
    pub stale: u64,
    /// Seconds after which messages of it are forgotten instead of `pubsub.seen_ttl`, because more came than are remembered; null if all are
    /// remembered as long as they should.
    pub seen_pressure_s: Option<u64>,
}

/// `why TOPIC`: what becomes of a topic on this device, and through whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PubsubWhy {
    /// Its name.
    pub topic: String,
    /// All of it in a sentence.
    pub summary: String,
    /// Whether it is read on this device.
    pub read: bool,
    /// Whether it is carried for others.
    pub relayed: bool,
    /// How it fares; null if it is neither read nor carried.
    pub health: Option<PubsubTopic>,
    /// Seconds since when it has not been well; null if it is, or if that is not known.
    pub unwell_s: Option<u64>,
    /// The connected peers that subscribe to it.
    pub subscribers: Vec<PubsubPeer>,
    /// Connected peers.
    pub connected: u64,
    /// Of those: without pubsub.
    pub without_pubsub: u64,
    /// What keeps others away, if nobody who is connected subscribes.
    pub troubles: Vec<Trouble>,
}

/// A neighbour, as pubsub knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PubsubPeer {
    /// Who.
    pub id: String,
    /// Our stream to it: `opening`, `open`, `paused`, `unsupported` or `shut`.
    pub stream: String,
    /// What it subscribes to, of what is remembered.
    pub topics: Vec<String>,
    /// Of those: whose mesh it is in with us.
    pub mesh: Vec<String>,
    /// Messages that wait for it.
    pub queued_messages: u64,
    /// Bytes of those.
    pub queued_bytes: u64,
    /// What it sent that no honest peer sends; at 16 it is shut out for a while.
    pub strikes: u64,
    /// Times that its stream stood still lately.
    pub stalls: u64,
    /// Seconds since something of pubsub came from it.
    pub last_received_s: Option<u64>,
    /// Seconds since something was written to it.
    pub last_written_s: Option<u64>,
}

/// `pubsub health`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PubsubHealth {
    /// Subscriptions of programs on this device.
    pub readers: u64,
    /// The topics that are read on this device.
    pub topics: Vec<PubsubTopic>,
    /// The neighbours.
    pub peers: Vec<PubsubPeer>,
    /// Everything that was counted since the daemon started.
    pub counters: std::collections::BTreeMap<String, u64>,
    /// Bytes that are held, by component.
    pub memory: std::collections::BTreeMap<String, u64>,
}

/// A key of this device, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// What people call it; `self` is the node's identity.
    pub key: String,
    /// The name that it signs for.
    pub name: String,
    /// The same in the form of older programs, which is the peer id for `self`.
    pub id: String,
}

/// What `name publish` is asked.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PublishRequest {
    /// `/ipfs/CID`, a CID, a path below one, or `/ipns/NAME`.
    pub value: String,
    /// Label of the key, or its name; default `self`.
    #[serde(default)]
    pub key: Option<String>,
    /// How long the record lives, in seconds; default one year.
    #[serde(default)]
    pub lifetime_s: Option<f64>,
    /// How long a resolver may answer from its memory, in seconds; default five minutes.
    #[serde(default)]
    pub ttl_s: Option<f64>,
    /// The number to use, above every one before; default the next.
    #[serde(default)]
    pub sequence: Option<u64>,
    /// Publish although what was published since a backup is not known.
    #[serde(default)]
    pub accept_fork: bool,
}

/// `name publish`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamePublished {
    /// The name.
    pub name: String,
    /// What it points to now.
    pub value: String,
    /// The number of the version.
    pub sequence: u64,
}

/// `name resolve`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameResolved {
    /// The name.
    pub name: String,
    /// What it points to.
    pub value: String,
    /// The number of the version.
    pub sequence: u64,
    /// Whether every block of it is on this device.
    pub complete: bool,
    /// Whether its record has passed its end of life, or is gone.
    pub stale: bool,
    /// How long the answer may be kept, in nanoseconds.
    #[serde(default)]
    pub ttl_ns: u64,
}

/// A line of `name watch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameEvent {
    /// `changed`, or `complete`: every block of the version is on this device.
    pub event: String,
    /// The cursor of whoever has seen this line.
    pub revision: u64,
    /// What is told.
    #[serde(flatten)]
    pub now: NameResolved,
}

/// A line of `name follow ls`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowStatus {
    /// The name.
    pub name: String,
    /// `complete` (the newest is whole here), `fetching`, `held` (after a rollback), `unknown` (nobody has told a record yet) or `error`.
    pub status: String,
    /// What the name points to.
    pub value: Option<String>,
    /// The number of that version.
    pub sequence: Option<u64>,
    /// What is whole on this device.
    pub complete_value: Option<String>,
    /// The number of that version.
    pub complete_sequence: Option<u64>,
    /// Versions that are kept, the present one among them.
    pub keep: u64,
    /// Those that are here; the last is the present one.
    pub versions: Vec<FollowVersion>,
    /// Blocks that are here of the version on its way, or else of the newest that became whole since the daemon started.
    pub blocks_done: u64,
    /// Their payload.
    pub bytes_done: u64,
    /// Of those: blocks that came from the swarm.
    pub blocks_fetched: u64,
    /// Their payload.
    pub bytes_fetched: u64,
    /// Blocks that are known to be missing.
    pub blocks_pending: u64,
    /// Why it does not advance.
    pub cause: Option<String>,
}

/// A version that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowVersion {
    /// Its number.
    pub sequence: u64,
    /// What the name pointed to.
    pub value: String,
}

/// What `name follow add` is asked.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FollowRequest {
    /// Versions to keep, the present one among them; default 2.
    #[serde(default)]
    pub keep: Option<u64>,
}

/// `name inspect`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameInspected {
    /// The name.
    pub name: String,
    /// What it points to.
    pub value: String,
    /// The number of the version.
    pub sequence: u64,
    /// End of life, RFC 3339.
    pub validity: String,
    /// Always `EOL`.
    pub validity_type: String,
    /// Time to live, in nanoseconds.
    pub ttl_ns: u64,
    /// `valid`: a record whose signature is not good is not shown.
    pub signature: String,
    /// `V1+V2` or `V2`.
    pub signature_type: String,
    /// Kind of the key.
    pub key: String,
    /// Size of the record, in bytes.
    pub pb_size: u64,
    /// `own`, `local`, `peer`, `pubsub`, `fetch`, `dht`; `file` for a record that was given.
    pub source: String,
    /// The peer it came from.
    pub peer: Option<String>,
    /// Seconds since it came.
    pub age_s: u64,
    /// Past its end of life.
    pub stale: bool,
    /// This device holds the key.
    pub own: bool,
    /// It is followed here.
    pub followed: bool,
    /// Nothing is published under it until a peer was heard: the book is older than what was published.
    pub unsure: bool,
    /// The number of the version that is whole on this device.
    pub complete_sequence: Option<u64>,
    /// What that one points to.
    pub complete_value: Option<String>,
    /// Another value that the key signed under the same number.
    pub contradicted: Option<String>,
    /// Number of its last change.
    pub revision: u64,
    /// Neighbours who read its topic.
    pub neighbours: u64,
}

/// What was collected, given back and scrubbed since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// What the store may take; collection begins at 90 % of it. 0: nobody can tell.
    pub limit_bytes: u64,
    /// Collections that came to their end.
    pub gc_runs: u64,
    /// Blocks that they removed.
    pub gc_blocks: u64,
    /// Their bytes.
    pub gc_bytes: u64,
    /// Bytes that were given back to the disk.
    pub freed_bytes: u64,
    /// Bytes that the scrub has read.
    pub scrubbed_bytes: u64,
    /// Times that it has read everything.
    pub scrub_rounds: u64,
    /// Damaged places that it has found.
    pub scrub_damaged: u64,
    /// Times that all pins were compared with what is here.
    #[serde(default)]
    pub compare_rounds: u64,
    /// Pins that said they were whole and lacked a block; they are made whole again.
    #[serde(default)]
    pub compare_struck: u64,
}

/// Memory of what is being received, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receiving {
    /// Received on all connections and not read yet.
    pub unread_bytes: u64,
    /// Where connections that lag behind are not read any more.
    pub unread_limit_bytes: u64,
    /// Messages of the block exchange being received or handled, beyond 64 KiB a connection.
    pub exchange_bytes: u64,
    /// Blocks between network and disk.
    pub arriving_bytes: u64,
}

/// Pins by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinCounts {
    /// Whole on this device.
    pub pinned: u64,
    /// Being fetched.
    pub pinning: u64,
    /// Waiting for their turn.
    pub queued: u64,
    /// Given up for the moment, tried again later.
    pub error: u64,
}

/// `connect`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConnectRequest {
    /// A multiaddr, with or without `/p2p/…`.
    pub address: String,
}

/// The answer to `connect`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Connected {
    /// Who answered.
    pub id: String,
    /// Where it is connected.
    pub address: String,
    /// The address that was asked for.
    #[serde(default)]
    pub requested: String,
    /// Whether it was connected before.
    #[serde(default)]
    pub already: bool,
    /// Whether `requested` was dialed. If not, nothing is known of that address unless it is `address` itself.
    #[serde(default)]
    pub tried: bool,
}

/// What an open request waits for: the answer to `GET /v1/waiting/{request}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Waits {
    /// `block`, `pin`, `dial`, `ping`, `name`, `change` or `room`.
    pub what: String,
    /// The block's CID, the pin's root, the address, the peer, the name.
    pub name: String,
    /// What is known of it, in words.
    pub cause: String,
    /// What to do about it.
    pub hint: String,
    /// For how long, in seconds.
    pub waited_s: f64,
    /// What to end with when the caller waits no longer: `timeout`, or `integrity` for a block that is damaged on this device.
    pub code: crate::error::Code,
}

/// `ping`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PingRequest {
    /// A connected peer.
    pub peer: String,
    /// How many; 1 to 1000.
    #[serde(default = "PingRequest::default_count")]
    pub count: u32,
}

impl PingRequest {
    fn default_count() -> u32 {
        4
    }
}

/// One round trip.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pong {
    /// Counts from 1.
    pub seq: u32,
    /// Round trip in milliseconds.
    pub rtt_ms: f64,
}

/// One entry of `add`; the root comes last.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Added {
    /// Path below what was added; bytes that are no UTF-8 are replaced by U+FFFD.
    pub name: String,
    /// The entry's CID.
    pub cid: String,
    /// Content bytes of a file; the sum below a folder.
    pub size: u64,
    /// The path as it is, in base64; only where `name` cannot hold it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_bytes: Option<String>,
}

impl From<&crate::content::add::Entry> for Added {
    fn from(entry: &crate::content::add::Entry) -> Self {
        Self {
            name: String::from_utf8_lossy(&entry.name).into_owned(),
            cid: entry.cid.to_string(),
            size: entry.size,
            name_bytes: text::name_bytes(&entry.name),
        }
    }
}

/// A line of the answer to `add` when open files were handed over: progress, or an entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AddLine {
    /// So many bytes of handed files were read since the last such line.
    Read {
        /// Bytes.
        read: u64,
    },
    /// An entry.
    Added(Added),
}

/// `pin add`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PinRequest {
    /// The root.
    pub cid: String,
    /// A label.
    #[serde(default)]
    pub name: Option<String>,
    /// `recursive` (default) or `direct`.
    #[serde(default)]
    pub kind: Option<String>,
    /// Give up waiting after so many seconds; the pin stays wanted.
    #[serde(default)]
    pub timeout_s: Option<f64>,
}

/// A pin and where it stands. Status words are IPFS Cluster's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinStatus {
    /// The root.
    pub cid: String,
    /// `pinned`, `pinning`, `pin_queued`, `pin_error`, `unpinned`, `unpinning`, `unpin_queued`, `unpin_error`.
    pub status: String,
    /// `recursive` or `direct`.
    pub kind: String,
    /// The label.
    pub name: Option<String>,
    /// Blocks that are durable here.
    pub blocks_done: u64,
    /// Their bytes.
    pub bytes_done: u64,
    /// Of these, fetched by this operation.
    pub blocks_fetched: u64,
    /// Their bytes.
    pub bytes_fetched: u64,
    /// Blocks known to belong to it and not yet here.
    pub blocks_pending: u64,
    /// Tries so far.
    pub attempts: u32,
    /// Why it does not advance; null while it does.
    pub cause: Option<String>,
}

/// Something that is being done about a pin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinOp {
    /// The root.
    pub cid: String,
    /// `pin` or `unpin`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `queued`, `running` or `failed`.
    pub phase: String,
    /// As in [`PinStatus`].
    pub status: String,
    /// Tries so far.
    pub attempts: u32,
    /// Since it came into being, in seconds.
    pub age_s: u64,
    /// Since the last block, or since it failed, in seconds.
    pub still_s: u64,
    /// Why it does not advance.
    pub cause: Option<String>,
    /// Until the next try; null if it runs, or waits for its turn, or for somebody who recovers it.
    pub retry_in_s: Option<u64>,
    /// Blocks that are durable here.
    pub blocks_done: u64,
    /// Their bytes.
    pub bytes_done: u64,
    /// Of these, fetched by this try.
    pub blocks_fetched: u64,
    /// Their bytes.
    pub bytes_fetched: u64,
    /// Blocks known to belong to it and not yet here.
    pub blocks_pending: u64,
}

impl PinOp {
    /// As it is at this moment of the daemon.
    #[must_use]
    pub fn of(op: &gemba_pins::Operation, now: std::time::Duration) -> Self {
        Self {
            cid: op.ticket.cid.to_string(),
            kind: op.kind.as_str().to_owned(),
            phase: op.phase.as_str().to_owned(),
            status: op.status().as_str().to_owned(),
            attempts: op.attempts,
            age_s: now.saturating_sub(op.since).as_secs(),
            still_s: now.saturating_sub(op.moved).as_secs(),
            cause: op.cause.clone(),
            retry_in_s: op.retry_at.map(|at| at.saturating_sub(now).as_secs()),
            blocks_done: op.progress.blocks_done,
            bytes_done: op.progress.bytes_done,
            blocks_fetched: op.progress.blocks_fetched,
            bytes_fetched: op.progress.bytes_fetched,
            blocks_pending: op.progress.pending,
        }
    }
}

/// `pin update`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PinUpdate {
    /// The newer root.
    pub to: String,
    /// Its label; without one it has that of the older.
    #[serde(default)]
    pub name: Option<String>,
    /// The older one stays pinned.
    #[serde(default)]
    pub keep: bool,
    /// Give up waiting after so many seconds; both stay pinned.
    #[serde(default)]
    pub timeout_s: Option<f64>,
}

/// Answer of `pin recover`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Recovered {
    /// Operations that are tried again now.
    pub recovered: u64,
}

/// Answer of `pin sync`: one pin against the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinSync {
    /// The root.
    pub cid: String,
    /// What was found, in words.
    pub found: String,
    /// What was done: `nothing`, `struck_out` (it is fetched again), `recorded` (it is whole, and its record says so now), `tried_again` (now), `ended` (what
    /// was being done about a root that nobody wants).
    pub done: String,
    /// How it is after that, as in [`PinStatus`].
    pub status: String,
    /// Blocks of it that are here and can be read.
    pub blocks_here: u64,
    /// Their bytes.
    pub bytes_here: u64,
    /// Blocks that are known to belong to it and are missing or damaged, up to 10,000.
    pub missing: u64,
}

/// Answer of commands that say only that they were done.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Done {
    /// Always true.
    pub ok: bool,
}

/// How files become a DAG: a profile and changes to it. Names and values are those of `gemba add`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportChoice {
    /// `unixfs-v1-2025` (default) or `unixfs-v0-2015`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// 0 or 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cid_version: Option<u8>,
    /// Whether leaves are raw blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_leaves: Option<bool>,
    /// `size-N`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunker: Option<String>,
    /// Links of an inner node of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_links: Option<usize>,
    /// Whether the mode of files and folders is kept.
    #[serde(default)]
    pub preserve_mode: bool,
    /// Whether the time of the last change is kept.
    #[serde(default)]
    pub preserve_mtime: bool,
    /// Whether the root is pinned.
    #[serde(default)]
    pub pin: bool,
    /// A label for the pin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl ImportChoice {
    /// The profile with its changes.
    ///
    /// # Errors
    /// [`Code::Usage`] for a value that is not taken.
    pub fn profile(&self) -> Result<Profile, Fail> {
        let wrong = |e: ProfileError| Fail::new(Code::Usage, e);
        let mut profile = match &self.profile {
            Some(name) => Profile::from_name(name).map_err(wrong)?,
            None => Profile::unixfs_v1_2025(),
        };
        match self.cid_version {
            None => {}
            // As Kubo does: CIDv1 alone brings raw leaves with it.
            Some(1) => profile = profile.cid_version(CidVersion::V1).raw_leaves(true),
            Some(0) => profile = profile.cid_version(CidVersion::V0),
            Some(other) => {
                return Err(
                    Fail::new(Code::Usage, format!("CID version {other} does not exist"))
                        .hint("0 or 1"),
                );
            }
        }
        if let Some(raw) = self.raw_leaves {
            profile = profile.raw_leaves(raw);
        }
        if let Some(chunker) = &self.chunker {
            profile = profile.chunker(chunker).map_err(wrong)?;
        }
        if let Some(links) = self.max_links {
            profile = profile.max_links(links).map_err(wrong)?;
        }
        Ok(profile
            .preserve_mode(self.preserve_mode)
            .preserve_mtime(self.preserve_mtime))
    }
}

/// One line of `ls`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Name in its folder; bytes that are no UTF-8 are replaced by U+FFFD.
    pub name: String,
    /// The name as it is, in base64; only where `name` cannot hold it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_bytes: Option<String>,
    /// The entry's CID.
    pub cid: String,
    /// `file`, `directory` or `symlink`. Without `long`, null where neither the link nor a block that is here tells it at little cost.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Content bytes of a file; null where `type` is.
    pub size: Option<u64>,
    /// Where a symbolic link points to; bytes that are no UTF-8 are replaced by U+FFFD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The target as it is, in base64; only where `target` cannot hold it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_bytes: Option<String>,
    /// Bytes of the blocks below it, as the folder claims.
    #[serde(default)]
    pub tsize: Option<u64>,
    /// Permission bits, if they are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Time of the last change in seconds since 1970, if it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime: Option<i64>,
    /// Its nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime_nsecs: Option<u32>,
}

impl From<crate::content::read::Listed> for Listed {
    fn from(entry: crate::content::read::Listed) -> Self {
        let (kind, target) = match entry.stat.as_ref().map(|stat| &stat.kind) {
            None => (None, None),
            Some(StatKind::File) => (Some("file"), None),
            Some(StatKind::Directory { .. }) => (Some("directory"), None),
            Some(StatKind::Symlink { target }) => (Some("symlink"), Some(target)),
        };
        let mtime = entry.stat.as_ref().and_then(|stat| stat.mtime);
        Self {
            name: String::from_utf8_lossy(&entry.name).into_owned(),
            name_bytes: text::name_bytes(&entry.name),
            cid: entry.cid.to_string(),
            kind: kind.map(str::to_owned),
            size: entry
                .stat
                .as_ref()
                .and_then(|stat| matches!(stat.kind, StatKind::File).then_some(stat.size)),
            target: target.map(|target| String::from_utf8_lossy(target).into_owned()),
            target_bytes: target.and_then(|target| text::name_bytes(target)),
            tsize: entry.tsize,
            mode: entry.stat.as_ref().and_then(|stat| stat.mode),
            mtime: mtime.map(|mtime| mtime.seconds),
            mtime_nsecs: mtime.map(|mtime| mtime.nanos),
        }
    }
}

/// What `dag import` did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// The archive's roots.
    pub roots: Vec<String>,
    /// Blocks in it.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl From<&crate::content::car::Imported> for Imported {
    fn from(imported: &crate::content::car::Imported) -> Self {
        Self {
            roots: imported.roots.iter().map(ToString::to_string).collect(),
            blocks: imported.blocks,
            bytes: imported.bytes,
        }
    }
}

/// A line of `gc`: what was found and done so far; the last one (`done`) is the report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// What is being done.
    pub phase: CollectPhase,
    /// Whether this is the report.
    pub done: bool,
    /// Nothing is removed: `blocks` and `bytes` are what would be.
    pub dry_run: bool,
    /// Blocks that were removed.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that were given back to the disk.
    pub freed_bytes: u64,
    /// Pins that were followed.
    pub pins: u64,
    /// Blocks that pins hold.
    pub kept_blocks: u64,
    /// Their bytes; known when all are found.
    pub kept_bytes: u64,
    /// Blocks that no pin holds and that stay, because something is being added, read or fetched at the moment.
    pub guarded_blocks: u64,
    /// Their bytes.
    pub guarded_bytes: u64,
    /// Why not all space came back, if something kept it from that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

/// What a collection is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CollectPhase {
    /// Finding what pins hold.
    #[default]
    Mark,
    /// Removing the rest.
    Sweep,
    /// Giving the space back.
    Compact,
}

/// What `gc` is asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectRequest {
    /// Only tell what would be removed.
    #[serde(default)]
    pub dry_run: bool,
}

/// A line of `repo verify`: how far it is, and in the last one (`done`) what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Whether this is the report.
    pub done: bool,
    /// Blocks checked.
    pub checked: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks there were when it began.
    pub total: u64,
    /// Damaged places.
    pub corrupt: Vec<Damage>,
    /// Pins that were thought whole and miss blocks: they are fetched again.
    #[serde(default)]
    pub pins_struck: u64,
}

/// A damaged place of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// The block as raw CIDv1 (codecs are not stored); null if its name is damaged, too.
    pub cid: Option<String>,
    /// Number of the pack.
    pub pack: u32,
    /// Offset in the pack.
    pub offset: u64,
    /// What is wrong.
    pub cause: String,
}

impl From<gemba_store::Progress> for Verified {
    fn from(progress: gemba_store::Progress) -> Self {
        Self {
            done: false,
            checked: progress.blocks,
            bytes: progress.bytes,
            total: progress.total_blocks,
            corrupt: Vec::new(),
            pins_struck: 0,
        }
    }
}

impl From<gemba_store::VerifyReport> for Verified {
    fn from(report: gemba_store::VerifyReport) -> Self {
        let damage = |place: gemba_store::CorruptBlock| Damage {
            cid: place.cid.map(|cid| cid.to_string()),
            pack: place.pack,
            offset: place.offset,
            cause: place.cause,
        };
        Self {
            done: true,
            checked: report.checked,
            bytes: report.bytes,
            total: report.checked,
            corrupt: report.corrupt.into_iter().map(damage).collect(),
            pins_struck: 0,
        }
    }
}
