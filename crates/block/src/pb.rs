//! The protobuf wire format, as far as dag-pb needs it: fields read in order, nothing copied, nothing allocated.
//! Source: protobuf.dev "Encoding"; ipld.io specs dag-pb.

/// One field of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Field number, 1 or more.
    pub number: u64,
    /// The value by wire type.
    pub value: Value<'a>,
}

/// A value by wire type; the deprecated groups (3 and 4) are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2.
    Bytes(&'a [u8]),
    /// Wire type 5.
    Fixed32(u32),
}

/// Why bytes are not a protobuf message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed protobuf at byte {at}: {what}")]
pub struct PbError {
    /// Offset from the start of the message.
    pub at: usize,
    /// What is wrong there.
    pub what: &'static str,
}

/// Iterates over the fields of a message; ends after the first error.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    whole: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// Reads `message` from its beginning.
    #[must_use]
    pub fn new(message: &'a [u8]) -> Self {
        Self {
            whole: message,
            at: 0,
        }
    }

    fn varint(&mut self) -> Result<u64, PbError> {
        let start = self.at;
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let Some(&byte) = self.whole.get(self.at) else {
                return Err(PbError {
                    at: start,
                    what: "the message ends inside a number",
                });
            };
            self.at += 1;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(PbError {
                    at: start,
                    what: "a number has more than 64 bits",
                });
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(PbError {
            at: start,
            what: "a number has more than ten bytes",
        })
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], PbError> {
        let end = self
            .at
            .checked_add(len)
            .filter(|end| *end <= self.whole.len());
        let Some(end) = end else {
            return Err(PbError {
                at: self.at,
                what: "a field is longer than the message",
            });
        };
        let bytes = &self.whole[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn field(&mut self) -> Result<Field<'a>, PbError> {
        let start = self.at;
        let key = self.varint()?;
        let number = key >> 3;
        if number == 0 || number > 0x1fff_ffff {
            return Err(PbError {
                at: start,
                what: "a field number is out of range",
            });
        }
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(
                self.take(8)?.try_into().expect("took eight bytes"),
            )),
            2 => {
                let len = self.varint()?;
                let len = usize::try_from(len).map_err(|_| PbError {
                    at: start,
                    what: "a field is longer than the message",
                })?;
                Value::Bytes(self.take(len)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(
                self.take(4)?.try_into().expect("took four bytes"),
            )),
            _ => {
                return Err(PbError {
                    at: start,
                    what: "groups and unknown wire types are not allowed",
                });
            }
        };
        Ok(Field { number, value })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, PbError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.whole.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.whole.len();
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_in_order() {
        let message = [
            0x08, 0x96, 0x01, 0x12, 0x02, b'h', b'i', 0x1d, 1, 0, 0, 0, 0x21, 2, 0, 0, 0, 0, 0, 0,
            0,
        ];
        let fields: Vec<_> = Fields::new(&message).map(Result::unwrap).collect();
        assert_eq!(
            fields,
            [
                Field {
                    number: 1,
                    value: Value::Varint(150)
                },
                Field {
                    number: 2,
                    value: Value::Bytes(b"hi")
                },
                Field {
                    number: 3,
                    value: Value::Fixed32(1)
                },
                Field {
                    number: 4,
                    value: Value::Fixed64(2)
                },
            ]
        );
    }

    #[test]
    fn malformed_messages_end_with_one_error() {
        let eleven = [
            0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
        ];
        let over64 = [
            0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02,
        ];
        for bad in [
            &[0x08][..],
            &[0x12, 5, 1],
            &[0x00, 1],
            &[0x0b],
            &[0x0f, 1],
            &[0x1d, 1],
            &eleven,
            &over64,
        ] {
            let all: Vec<_> = Fields::new(bad).collect();
            assert_eq!(all.len(), 1, "{bad:?}");
            assert!(all[0].is_err(), "{bad:?}");
        }
    }
}
