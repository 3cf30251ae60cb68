//! Topics and streams: the same levels. What a stream's name may not have is written `~` and two hexadecimal digits.

use gemba_log::{StreamName, consume::Delivery};

/// Where messages go whose topic is too long or too deep for a name.
const OTHERS: &str = "mqtt/others";

/// The stream of a topic.
pub(crate) fn stream_of(topic: &str) -> StreamName {
    let mut name = String::new();
    for (n, level) in topic.split('/').enumerate() {
        if n > 0 {
            name.push('/');
        }
        if level.is_empty() {
            name.push('~');
        }
        for byte in level.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' => {
                    name.push(char::from(byte));
                }
                _ => name.push_str(&format!("~{byte:02X}")),
            }
        }
    }
    let others = || StreamName::new(OTHERS).expect("a good name");
    StreamName::new(&name).unwrap_or_else(|_| others())
}

/// The topic of a stream.
pub(crate) fn topic_of(stream: &StreamName) -> String {
    let level = |level: &str| {
        let mut parts = level.split('~');
        let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
        for part in parts {
            let code = part
                .get(..2)
                .and_then(|code| u8::from_str_radix(code, 16).ok());
            match code {
                Some(byte) => {
                    bytes.push(byte);
                    bytes.extend(&part.as_bytes()[2..]);
                }
                // An empty level, or a stream whose name was not made of a topic.
                None if level == "~" => {}
                None => {
                    bytes.push(b'~');
                    bytes.extend(part.as_bytes());
                }
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    stream.levels().map(level).collect::<Vec<_>>().join("/")
}

/// The name of an event: the same for ever, and nobody else's.
pub(crate) fn name_of(delivery: &Delivery) -> String {
    let feed = &delivery.id.feed;
    let (stream, author, epoch) = (&feed.stream, feed.author, feed.epoch.0);
    format!("{stream}:{author}:{epoch}:{}", delivery.id.seq)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_come_back_as_they_were() {
        for (topic, stream) in [
            ("plant/press-7/count", "plant/press-7/count"),
            ("plant/Öfen/1 2", "plant/~C3~96fen/1~202"),
            ("/leading//double", "~/leading/~/double"),
            ("$SYS/uptime", "~24SYS/uptime"),
            ("a~b", "a~7Eb"),
        ] {
            let name = stream_of(topic);
            assert_eq!(name.as_str(), stream);
            assert_eq!(topic_of(&name), topic);
        }
        assert_eq!(stream_of(&"x".repeat(300)).as_str(), OTHERS);
    }
}
