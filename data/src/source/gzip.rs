//! Gzip as the `gzip` tool reads it: members one after the other, and zeros that pad them to the blocks of a tape.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

/// The joined content of all members.
pub(super) struct Members<R> {
    state: State<R>,
}

enum State<R> {
    Member(Box<GzDecoder<R>>),
    Between(R),
    Ended,
}

impl<R: BufRead> Members<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            state: State::Member(Box::new(GzDecoder::new(input))),
        }
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.state = match std::mem::replace(&mut self.state, State::Ended) {
                State::Ended => return Ok(0),
                State::Member(mut member) => {
                    let read = member.read(buffer);
                    if !matches!(read, Ok(0)) || buffer.is_empty() {
                        self.state = State::Member(member);
                        return read;
                    }
                    State::Between(member.into_inner())
                }
                State::Between(mut input) => match skip_zeros(&mut input)? {
                    true => State::Member(Box::new(GzDecoder::new(input))),
                    false => State::Ended,
                },
            };
        }
    }
}

/// Passes over zeros; whether something follows them.
fn skip_zeros(input: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let available = input.fill_buf()?;
        if available.is_empty() {
            return Ok(false);
        }
        let zeros = available.iter().take_while(|&&byte| byte == 0).count();
        let more = zeros < available.len();
        input.consume(zeros);
        if more {
            return Ok(true);
        }
    }
}
