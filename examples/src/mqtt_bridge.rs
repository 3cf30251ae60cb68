//! A bridge: MQTT 5 → log → a sink as Kafka is one, and from the log back to MQTT. Kill it whenever you like and start it again.
//!
//! `mqtt-bridge FOLDER BROKER TOPICS`, such as `mqtt-bridge /var/lib/bridge 127.0.0.1:1883 'plant/#'`. It runs until it is ended.
//!
//! - What the broker sends is acknowledged (QoS 1) when the log has it on disk, and not before; what a kill leaves open the broker sends again. A message
//!   with `producer` and `seq` among its user properties is in the log once; without them a second sending is a second event, as QoS 1 says. A producer's
//!   numbers rise, and who begins anew with them takes another name (specs/log-semantics.md, LS-4). A number that comes late is carried all the same, as if
//!   it had none: nothing is lost for it.
//! - What is no event, because it is larger than 512 KiB, does not hold up what is behind it: `mqtt/refused` has an event that says so. What is larger than
//!   1 MiB the broker does not send, because it is told not to.
//! - The sink knows which events it has, as a Kafka partition knows the numbers of an idempotent producer: what comes again is not written again.
//! - What comes from MQTT is marked in its headers and does not go back there; what goes there is marked and is not taken in again. So there is no loop, also
//!   with a broker that sends its clients what they published themselves.
#![allow(clippy::print_stderr, reason = "a program for a terminal")]

mod bridge;

use bridge::{names, partition::Partition};
use gemba_log::{
    Config, EventList, Headers, Log, LogError, MemorySigner, NewEvent, Origin, StreamName,
    consume::{ConsumeError, Consumer, Delivery, Takeover},
    core::consumer::{Config as ConsumerConfig, ConsumerName, Worker},
    store::RedbStore,
};
use rumqttc::{
    AckMode, AsyncClient, BrokerSessionResumePolicy, Event, EventLoop, MqttOptions, Packet,
    PublishOptions, QoS,
    mqttbytes::v5::{ConnectProperties, Publish, PublishProperties},
};
use std::{
    error::Error,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

type Failure = Box<dyn Error + Send + Sync>;

/// A message, and the connection that it came on, by number. What a connection left unacknowledged comes again on the next.
type Came = (u64, Publish);

/// Whose session it is at the broker, and whose mark events carry.
const ME: &str = "gemba-bridge";
/// The user property of what comes from the log.
const MARK: &str = "gemba";
/// What the broker may have open with us. Whatever waits here is less, so no queue is ever full.
const OPEN: u16 = 64;
const QUEUE: usize = 4 * OPEN as usize;
/// The largest message that the broker may send.
const LARGEST: u32 = 1 << 20;
/// Where it is told of messages that are no events.
const REFUSED: &str = "mqtt/refused";
/// Names a mistake, for tests.
const PLANTED: &str = "MQTT_BRIDGE_PLANTED";

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, broker, topics] = args.as_slice() else {
        return Err("what it takes: FOLDER BROKER TOPICS".into());
    };
    let (dir, (host, port)) = (
        Path::new(folder),
        broker
            .rsplit_once(':')
            .ok_or("the broker is ADDRESS:PORT")?,
    );
    let signer = Arc::new(MemorySigner::from_seed(&[7; 32]));
    let disk = Arc::new(gemba_segment::RealDisk);
    let (log, _) = Log::open(disk, &dir.join("log"), Config::default(), signer)?;
    let log = Arc::new(log);
    tell_that_it_runs(&log)?;

    let port = port.parse()?;
    let (client, connection) = AsyncClient::builder(reader(host, port))
        .capacity(QUEUE)
        .build();
    // A connection of its own: who resumes a session of which it kept nothing may not publish in it.
    let back = MqttOptions::new(format!("{ME}-back"), (host, port));
    let (back, back_connection) = AsyncClient::builder(back).capacity(QUEUE).build();
    let (sender, receiver) = sync_channel(QUEUE);
    let (ends, mut ended) = tokio::sync::mpsc::channel(3);
    let current = Arc::new(AtomicU64::new(0));
    let (to, from, of) = (Arc::clone(&log), client.clone(), Arc::clone(&current));
    part(&ends, move || take_in(&to, &from, &of, &receiver));
    let (from, at) = (Arc::clone(&log), dir.to_owned());
    let mut partition = Partition::open(&dir.join("partition-0"))?;
    part(&ends, move || {
        carry(&from, &at, "sink", |events| partition.write(events))
    });
    let at = dir.to_owned();
    part(&ends, move || {
        carry(&log, &at, "back", |events| put_back(&back, events))
    });
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build()?.block_on(async {
        tokio::select! {
            end = listen(connection, &client, topics, &current, &sender) => end,
            () = keep_up(back_connection) => Ok(()),
            Some(error) = ended.recv() => Err(error),
        }
    })
}

/// Runs a part of the bridge. Whatever it cannot do, it cannot do alone: the program ends, and goes on where it was when it is started again.
fn part(
    ends: &tokio::sync::mpsc::Sender<Failure>,
    run: impl FnOnce() -> Result<(), Failure> + Send + 'static,
) {
    let ends = ends.clone();
    thread::spawn(move || {
        if let Err(error) = run() {
            let _ = ends.blocking_send(error);
        }
    });
}

/// How the bridge reads: the broker keeps for it what it has not acknowledged.
fn reader(host: &str, port: u16) -> MqttOptions {
    let mut properties = ConnectProperties::new();
    properties.session_expiry_interval = Some(u32::MAX);
    properties.receive_maximum = Some(OPEN);
    let mut options = MqttOptions::new(ME, (host, port));
    options
        .set_connect_properties(properties)
        // We keep nothing of the session; the log does.
        .set_clean_start(false)
        .set_broker_session_resume_policy(BrokerSessionResumePolicy::AllowBrokerOnly)
        .set_max_packet_size(Some(LARGEST))
        .set_ack_mode(ack_mode())
        .set_keep_alive(5);
    options
}

/// We acknowledge, when the log has it. The client would do so by itself, with what it reads and before anybody has it: that is the mistake which a test plants,
/// to prove that it finds it.
fn ack_mode() -> AckMode {
    match std::env::var_os(PLANTED).is_some_and(|bug| bug == "automatic-acks") {
        true => AckMode::Automatic,
        false => AckMode::Manual,
    }
}

/// An event of the bridge's own, for the way back: how often it was started.
fn tell_that_it_runs(log: &Log) -> Result<(), Failure> {
    let stream: StreamName = "plant/bridge/started".parse()?;
    let feeds = log.feeds(&(&stream).into());
    let starts: u64 = feeds
        .iter()
        .filter_map(|feed| log.head(feed))
        .map(|head| head.next)
        .sum();
    log.append(&stream, &[NewEvent::new(now_ms(), starts.to_string())])?;
    Ok(())
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.ok()
        .and_then(|now| i64::try_from(now.as_millis()).ok())
        .unwrap_or(0)
}

/// Keeps the connection going; only passes on what comes, so that it is never held up.
async fn listen(
    mut connection: EventLoop,
    client: &AsyncClient,
    topics: &str,
    current: &AtomicU64,
    sender: &SyncSender<Came>,
) -> Result<(), Failure> {
    loop {
        match connection.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(ack))) => {
                current.fetch_add(1, Ordering::AcqRel);
                if !ack.session_present {
                    client.try_subscribe(topics, QoS::AtLeastOnce)?;
                }
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                sender.send((current.load(Ordering::Acquire), publish))?;
            }
            Ok(_) => {}
            Err(error) => {
                eprintln!("{error}; connecting again");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// Keeps up a connection on which nothing comes.
async fn keep_up(mut connection: EventLoop) {
    loop {
        if let Err(error) = connection.poll().await {
            eprintln!("{error}; connecting again");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// From MQTT into the log: as many as have come share one flush, and are acknowledged behind it.
fn take_in(
    log: &Log,
    client: &AsyncClient,
    current: &AtomicU64,
    receiver: &Receiver<Came>,
) -> Result<(), Failure> {
    let is_manual = matches!(ack_mode(), AckMode::Manual);
    while let Ok(first) = receiver.recv() {
        let came: Vec<Came> = std::iter::once(first).chain(receiver.try_iter()).collect();
        let from_elsewhere = came
            .iter()
            .map(|(_, publish)| publish)
            .filter(|publish| property(publish, MARK).is_none());
        append(log, from_elsewhere.map(event_of).collect())?;
        for (connection, publish) in &came {
            // What another connection brought comes again, and by then its number at the broker may be another message's.
            if is_manual && *connection == current.load(Ordering::Acquire) {
                client.try_ack(publish)?;
            }
        }
    }
    Ok(())
}

/// All of them, each in its stream or told of in [`REFUSED`].
fn append(log: &Log, mut events: Vec<(StreamName, NewEvent)>) -> Result<(), Failure> {
    let mut lists = Vec::new();
    for (stream, event) in &mut events {
        let list = match EventList::of(std::slice::from_ref(event)) {
            Ok(list) => list,
            Err(error) => {
                eprintln!("a message of {stream} is no event: {error}");
                *event = refusal(stream, event, &error.to_string());
                *stream = REFUSED.parse()?;
                EventList::of(std::slice::from_ref(event))?
            }
        };
        lists.push((stream.clone(), list));
    }
    let mut late = Vec::new();
    for (done, (stream, mut event)) in log.append_many(lists).into_iter().zip(events) {
        match done {
            Ok(_) => {}
            // Below the remembered numbers (LOG-50). It may be there already, or never have come: twice is better than lost.
            Err(error @ LogError::OldProducer { .. }) => {
                eprintln!("a message of {stream} is carried without its number: {error}");
                event.headers.producer = None;
                late.push((stream, EventList::of(&[event])?));
            }
            Err(error) => return Err(error.into()),
        }
    }
    for done in log.append_many(late) {
        done?;
    }
    Ok(())
}

/// What there is to say of a message that is no event.
fn refusal(stream: &StreamName, event: &NewEvent, cause: &str) -> NewEvent {
    let headers = Headers {
        origin: event.headers.origin.clone(),
        ..Headers::default()
    };
    let headers = headers
        .pair("stream", stream.as_str())
        .pair("bytes", event.payload.len().to_string());
    NewEvent::new(event.time, cause.to_owned()).with(headers)
}

fn property<'a>(publish: &'a Publish, key: &str) -> Option<&'a str> {
    let properties = publish.properties.as_ref()?;
    let found = properties
        .user_properties
        .iter()
        .find(|(name, _)| name == key);
    found.map(|(_, value)| value.as_str())
}

fn event_of(publish: &Publish) -> (StreamName, NewEvent) {
    let topic = String::from_utf8_lossy(&publish.topic).into_owned();
    let mut headers = Headers {
        origin: Some(Origin {
            service: ME.to_owned(),
            ..Origin::default()
        }),
        ..Headers::default()
    };
    let number = property(publish, "seq").and_then(|seq| seq.parse().ok());
    if let (Some(producer), Some(number)) = (property(publish, "producer"), number) {
        headers = headers.produced_by(producer, number);
        if headers.check().is_err() {
            headers.producer = None;
        }
    }
    let stream = names::stream_of(&topic);
    if names::topic_of(&stream) != topic {
        // Too long or too deep for a name; the topic is not lost for that.
        headers = headers.pair("topic", topic.chars().take(1_000).collect::<String>());
    }
    (
        stream,
        NewEvent::new(now_ms(), publish.payload.clone()).with(headers),
    )
}

/// From the log to somewhere else: acknowledged when it is there. What is not there yet comes again.
fn carry(
    log: &Log,
    dir: &Path,
    name: &str,
    mut deliver: impl FnMut(&[Delivery]) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let start = Instant::now();
    let mut config = ConsumerConfig::new(ConsumerName::new(name)?, vec!["#".parse()?]);
    config.batch = 64;
    let store = RedbStore::open(&dir.join(format!("{name}.redb")))?;
    let takeover = Takeover::Continue;
    let consumer = Consumer::open(log, store, log.author(), config, takeover, start.elapsed())?;
    let me = Worker(1);
    loop {
        let Some(taken) = consumer.take(me, start.elapsed())? else {
            thread::sleep(Duration::from_millis(2));
            continue;
        };
        if !deliver(&taken.deliveries)? {
            consumer.leave(me, start.elapsed())?;
            thread::sleep(Duration::from_millis(200));
            continue;
        }
        let last = taken.deliveries.last().map(|delivery| delivery.id.seq);
        if let Some(last) = last {
            match consumer.acknowledge(&taken.receipt, last, start.elapsed()) {
                // It took longer than the lease: they are given again.
                Err(ConsumeError::Refused(_)) | Ok(()) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// To MQTT, but for what came from there; whether the broker has acknowledged all.
fn put_back(client: &AsyncClient, events: &[Delivery]) -> Result<bool, Failure> {
    let mut open = Vec::new();
    for delivery in events {
        let origin = delivery.event.headers.origin.as_ref();
        if origin.is_some_and(|origin| origin.service == ME) {
            continue;
        }
        let properties = PublishProperties {
            user_properties: vec![(MARK.to_owned(), names::name_of(delivery))],
            ..PublishProperties::default()
        };
        let options = PublishOptions::new(QoS::AtLeastOnce).properties(properties);
        let topic = names::topic_of(&delivery.id.feed.stream);
        open.push(client.try_publish_tracked(topic, delivery.event.payload.clone(), options)?);
    }
    Ok(open.into_iter().all(|notice| notice.wait().is_ok()))
}
