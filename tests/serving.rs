//! `gpas serve` as its clients meet it, the well-behaved and the others.

mod families;
mod place;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use families::{Family, TEXTS, families};
use place::Place;
use serde_json::{Value, json};

/// A server of a run that has been trained for three steps, on a port of its own.
struct Server {
    process: Child,
    address: String,
    /// What it serves lies here.
    place: Place,
}

/// What a server answers.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The message of an error, which must be in OpenAI's shape.
    fn message(&self) -> String {
        let error = &self.json()["error"];
        for key in ["message", "type", "param", "code"] {
            assert!(error.get(key).is_some(), "{}", self.body);
        }
        error["message"].as_str().expect("a message").to_string()
    }
}

impl Server {
    fn start(options: &str) -> Self {
        Self::trained(Place::prepared(), options)
    }

    /// A server of a run on the prepared data that is there.
    fn trained(place: Place, options: &str) -> Self {
        place.does("train tiny.toml --plain -o run");
        Self::of(place, options)
    }

    /// A server of the run that is there.
    fn of(place: Place, options: &str) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_gpas"))
            .args(["serve", "run", "--port", "0"])
            .args(options.split_whitespace())
            .current_dir(place.root())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let out = process.stdout.take().expect("it is piped");
        // From here on its process ends with it, also where an assertion fails.
        let mut server = Self {
            process,
            address: String::new(),
            place,
        };
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line).expect("a line");
        assert!(
            line.starts_with("serving run (") && line.contains(" tokens of context) on http://127.0.0.1:"),
            "{line}"
        );
        server.address = line.trim().rsplit("http://").next().expect("an address").to_string();
        server
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("it listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("a timeout");
        stream
    }

    /// Sends bytes as they are and reads to the end.
    fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect();
        // It may answer, and close, before it has everything.
        let _ = stream.write_all(request);
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or(0);
        Answer {
            status,
            head: head.to_lowercase(),
            body: body.into(),
        }
    }

    fn send(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.raw(&[head.as_bytes(), body].concat())
    }

    fn post(&self, body: &Value) -> Answer {
        self.send("POST", "/v1/completions", body.to_string().as_bytes())
    }

    fn complete(&self, body: &Value) -> Value {
        let answer = self.post(body);
        assert_eq!(answer.status, 200, "{body}: {}", answer.body);
        answer.json()
    }

    /// It still answers.
    fn is_well(&self) {
        assert_eq!(self.send("GET", "/health", b"").status, 200);
        let answer = self.complete(&json!({"prompt": "fox", "max_tokens": 2, "temperature": 0}));
        assert_eq!(answer["object"], "text_completion");
    }

    /// Sends a signal and waits for the end; the exit code.
    #[cfg(unix)]
    fn stop(&mut self, signal: &str) -> Option<i32> {
        let id = self.process.id().to_string();
        Command::new("kill").args([signal, &id]).status().expect("kill");
        let begin = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().expect("a child") {
                return status.code();
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// With every token an end, the first one that is drawn ends the text.
#[test]
fn a_text_ends_at_every_end_of_the_model() {
    let place = Place::prepared();
    place.does("train tiny.toml --plain -o run");
    let ends: Vec<u32> = (0..300).collect();
    place.write(
        "run/special_tokens.json",
        json!({"end_of_document": 0, "ends": ends, "begin": null, "pad": null, "unknown": null}).to_string(),
    );
    let server = Server::of(place, "");
    let answer = server.complete(&json!({"prompt": "fox", "max_tokens": 5, "seed": 3}));
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
    assert_eq!(answer["usage"]["completion_tokens"], 1, "{answer}");
}

#[test]
fn it_says_what_it_is() {
    let server = Server::start("");
    let models = server.send("GET", "/v1/models", b"");
    assert!(models.head.contains("application/json"), "{}", models.head);
    assert_eq!(models.json()["data"][0]["id"], "run");
    assert_eq!(models.json()["data"][0]["max_model_len"], 16);
    assert_eq!(server.send("GET", "/health", b"").json(), json!({"status": "ok"}));
    for path in [
        "/",
        "/v1",
        "/etc/passwd",
        "/../../etc/passwd",
        "/v1/completions/",
        "/%2e%2e",
    ] {
        let answer = server.send("GET", path, b"");
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.message().starts_with("there is no "));
    }
    let wrong = server.send("GET", "/v1/completions", b"");
    assert_eq!(wrong.status, 405);
    assert!(wrong.head.contains("allow: post"), "{}", wrong.head);
}

#[test]
fn a_text_goes_on_as_on_the_command_line() {
    // The third text of a prompt waits for one of the others to end.
    let server = Server::start("--together 2");
    for (seed, n) in [(3, 1), (11, 3)] {
        let options = format!("--prompt fox --max-tokens 6 --temperature 0.7 --top-p 0.9 --seed {seed} --json");
        let expected: Value =
            serde_json::from_str(&server.place.does(&format!("generate run {options}"))).expect("json");
        let asked = json!({"prompt": "fox", "max_tokens": 6, "temperature": 0.7, "top_p": 0.9, "seed": seed, "n": n});
        let answer = server.complete(&asked);
        let choices = answer["choices"].as_array().expect("choices");
        assert_eq!(choices.len(), n);
        assert_eq!(choices[0]["text"], expected["text"]);
        assert_eq!(choices[0]["finish_reason"], expected["finish"]);
        assert_eq!(answer["usage"]["prompt_tokens"], expected["prompt_tokens"]);
        assert_eq!(answer["id"].as_str().map(|id| id.starts_with("cmpl-")), Some(true));
    }
    // As tokens, alone and among others.
    let logits = json!({"prompt": "the quick", "temperature": 0, "max_tokens": 4, "echo": true, "logprobs": 0});
    let text = server.complete(&logits);
    let together = json!({"prompt": ["fox", "the quick", "near a river"], "temperature": 0, "max_tokens": 4, "echo": true, "logprobs": 0});
    let all = server.complete(&together);
    let (alone, among) = (&text["choices"][0], &all["choices"][1]);
    assert_eq!(alone["text"], among["text"]);
    assert_eq!(alone["logprobs"], among["logprobs"]);
    assert_eq!(among["index"], 1);
}

#[test]
fn an_echo_has_the_log_probabilities_of_the_prompt() {
    let server = Server::start("");
    let ids = [5, 17, 9, 260, 33];
    let asked = json!({"prompt": [ids, ids], "max_tokens": 0, "echo": true, "logprobs": 2, "temperature": 0});
    let answer = server.complete(&asked);
    assert_eq!(answer["choices"].as_array().map(Vec::len), Some(2));
    assert_eq!(answer["choices"][0]["logprobs"], answer["choices"][1]["logprobs"]);
    let logprobs = &answer["choices"][0]["logprobs"];
    let list = |key: &str| logprobs[key].as_array().expect(key).clone();
    for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(list(key).len(), ids.len(), "{key}");
    }
    assert!(list("token_logprobs")[0].is_null() && list("top_logprobs")[0].is_null());
    // Against the raw logits.
    server
        .place
        .does("logits run --ids 5,17,9,260,33 -o logits.safetensors");
    let bytes = std::fs::read(server.place.path("logits.safetensors")).expect("a file");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let view = file.tensor("logits").expect("logits");
    let values: Vec<f64> = view
        .data()
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f64::from(f32::from_le_bytes(*b)))
        .collect();
    for (position, row) in values.chunks(300).take(ids.len() - 1).enumerate() {
        let sum: f64 = row.iter().map(|logit| logit.exp()).sum();
        let expected = row[ids[position + 1]] - sum.ln();
        let found = list("token_logprobs")[position + 1].as_f64().expect("a number");
        assert!((found - expected).abs() < 1e-5, "{position}: {found} {expected}");
        let top = list("top_logprobs")[position + 1]
            .as_object()
            .expect("an object")
            .clone();
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max) - sum.ln();
        let best = top.values().filter_map(Value::as_f64).fold(f64::NEG_INFINITY, f64::max);
        assert!((best - largest).abs() < 1e-5);
        assert!((2..=3).contains(&top.len()));
    }
    // With one more token, as lm-evaluation-harness asks, even where the prompt fills the context.
    for length in [5, 16] {
        let prompt: Vec<u32> = (1..=length).collect();
        let asked = json!({"prompt": prompt, "max_tokens": 1, "echo": true, "logprobs": 1, "temperature": 0});
        let answer = server.complete(&asked);
        let found = answer["choices"][0]["logprobs"]["token_logprobs"]
            .as_array()
            .expect("a list")
            .len();
        assert_eq!(found, prompt.len() + 1);
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
    }
}

#[test]
fn a_stream_adds_up_to_the_whole() {
    let server = Server::start("");
    let asked = |stream: bool| {
        json!({"prompt": ["fox", "dogs and"], "max_tokens": 8, "seed": 5, "n": 2, "stream": stream, "logprobs": 1,
            "echo": true, "stream_options": {"include_usage": true}})
    };
    let whole = server.complete(&asked(false));
    let answer = server.post(&asked(true));
    assert!(answer.head.contains("text/event-stream"), "{}", answer.head);
    let lines: Vec<&str> = answer
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .collect();
    assert_eq!(lines.last(), Some(&"[DONE]"));
    let pieces: Vec<Value> = lines[..lines.len() - 1]
        .iter()
        .map(|line| serde_json::from_str(line).expect("json"))
        .collect();
    assert_eq!(pieces.last().expect("a piece")["usage"], whole["usage"]);
    for expected in whole["choices"].as_array().expect("choices") {
        let own = pieces
            .iter()
            .flat_map(|piece| piece["choices"].as_array().expect("choices"));
        let own: Vec<&Value> = own.filter(|choice| choice["index"] == expected["index"]).collect();
        let text: String = own
            .iter()
            .map(|choice| choice["text"].as_str().expect("a text"))
            .collect();
        assert_eq!(text, expected["text"].as_str().expect("a text"));
        assert_eq!(own.last().expect("a piece")["finish_reason"], expected["finish_reason"]);
        let join = |key: &str| -> Vec<Value> {
            own.iter()
                .flat_map(|choice| choice["logprobs"][key].as_array().expect("a list").clone())
                .collect()
        };
        for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(Value::from(join(key)), expected["logprobs"][key], "{key}");
        }
    }
}

#[test]
fn what_has_no_meaning_is_refused_and_does_no_harm() {
    let server = Server::start("");
    let refused = |body: &[u8], status: u16, message: &str| {
        let answer = server.send("POST", "/v1/completions", body);
        assert_eq!(answer.status, status, "{}", answer.body);
        assert!(answer.message().contains(message), "{}", answer.body);
    };
    for body in [
        &b""[..],
        b"{",
        b"[]",
        b"nonsense",
        b"{\"prompt\": \"\xff\xfe\"}",
        &[0; 1000],
    ] {
        refused(body, 400, "the body is no request");
    }
    let body = |value: Value| value.to_string().into_bytes();
    refused(
        &body(json!({"prompt": [5, 300]})),
        400,
        "token id 300 is outside the model's vocabulary of 300",
    );
    refused(
        &body(json!({"prompt": [5, 4_294_967_295_u32]})),
        400,
        "outside the model's vocabulary",
    );
    refused(&body(json!({"prompt": [-5]})), 400, "the body is no request");
    refused(&body(json!({"prompt": [[]]})), 400, "there are no token ids");
    refused(
        &body(json!({"prompt": "a", "temperature": -1})),
        400,
        "temperature = -1 is not 0 or more",
    );
    refused(
        &body(json!({"prompt": "a", "max_tokens": -1})),
        400,
        "the body is no request",
    );
    refused(
        &body(json!({"prompt": "a", "suffix": "b"})),
        400,
        "`suffix` is not supported",
    );
    let long = server.post(&json!({"prompt": vec![1; 17]}));
    assert_eq!(
        (long.status, &long.json()["error"]["code"]),
        (400, &json!("context_length_exceeded"))
    );
    refused(
        &body(json!({"prompt": "fox ".repeat(10_000)})),
        400,
        "are more than a context of 16",
    );
    // No more than the context holds, however much is asked for.
    let answer = server.complete(&json!({"prompt": [5], "max_tokens": 1_000_000_000_000_u64, "seed": 1}));
    assert!(answer["usage"]["completion_tokens"].as_u64().expect("a number") <= 16);
    // Too large, said and unsaid.
    let large = vec![b' '; (4 << 20) + 1];
    refused(&large, 413, "the body is larger than");
    let chunked =
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = [format!("{:x}\r\n", large.len()).as_bytes(), &large, b"\r\n0\r\n\r\n"].concat();
    assert_eq!(server.raw(&[&chunked[..], &chunk].concat()).status, 413);
    let claimed = server
        .raw(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 99999999999\r\n\r\n{");
    assert_eq!(claimed.status, 413);
    // No HTTP, endless headers.
    assert!(
        [0, 400].contains(
            &server
                .raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
                .status
        )
    );
    let endless = [&b"GET /health HTTP/1.1\r\n"[..], &b"a: b\r\n".repeat(100_000)].concat();
    assert!([0, 400, 431].contains(&server.raw(&endless).status));
    server.is_well();
}

/// As `nc -N` does: it has said everything, and waits.
#[test]
fn a_client_that_closes_its_side_of_the_connection_is_answered() {
    let server = Server::start("--context 2048");
    for (version, headers) in [
        ("1.1", "Host: x\r\nConnection: close\r\n"),
        ("1.1", "Host: x\r\n"),
        ("1.0", ""),
    ] {
        for asked in [
            json!({"prompt": "fox", "max_tokens": 4, "seed": 1}),
            json!({"prompt": "fox", "max_tokens": 1500, "n": 4, "seed": 1}),
            json!({"prompt": "fox", "max_tokens": 4, "seed": 1, "stream": true}),
        ] {
            let body = asked.to_string();
            let mut stream = server.connect();
            let head = format!(
                "POST /v1/completions HTTP/{version}\r\n{headers}Content-Length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all((head + &body).as_bytes()).expect("a connection");
            stream.shutdown(Shutdown::Write).expect("a connection");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer");
            assert!(answer.starts_with(&format!("HTTP/{version} 200")), "{asked}: {answer}");
            assert!(answer.contains("\"finish_reason\":\""), "{asked}: {answer}");
        }
    }
    let mut stream = server.connect();
    stream
        .write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        .expect("a connection");
    stream.shutdown(Shutdown::Write).expect("a connection");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("{\"status\":\"ok\"}"),
        "{answer}"
    );
    // One that says nothing, or half of it, ends its connection.
    for part in [
        &b""[..],
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{",
    ] {
        let mut stream = server.connect();
        stream.write_all(part).expect("a connection");
        stream.shutdown(Shutdown::Write).expect("a connection");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(
            !answer.starts_with(b"HTTP/1.1 200"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    server.is_well();
}

#[test]
fn fields_of_other_servers_are_ignored_with_a_word_or_refused_by_name() {
    let server = Server::start("");
    let asked = json!({"prompt": "fox", "max_tokens": 4, "seed": 1, "temperature": 0});
    let plain = server.complete(&asked);
    assert!(plain.get("warnings").is_none(), "{plain}");
    let with = |key: &str, value: Value| {
        let mut asked = asked.clone();
        asked[key] = value;
        asked
    };
    for (key, value, is_known) in [
        ("user", json!("somebody"), true),
        ("presence_penalty", json!(0), true),
        ("frequency_penalty", json!(0.0), true),
        ("logit_bias", json!({}), true),
        ("suffix", Value::Null, true),
        ("best_of", json!(1), true),
        ("response_format", json!({"type": "text"}), true),
        (
            "stream_options",
            json!({"include_usage": true, "include_obfuscation": false}),
            true,
        ),
        ("tools", json!([{"type": "function"}]), false),
        ("logit_bias", json!({"5": -100}), false),
        ("frequency_penalty", json!(0.5), false),
        ("tool_choice", json!("auto"), false),
        ("metadata", json!({"a": "b"}), false),
        ("service_tier", json!("auto"), false),
        ("store", json!(true), false),
    ] {
        let answer = server.complete(&with(key, value));
        assert_eq!(answer["choices"], plain["choices"], "{key}");
        let warnings = json!([format!("`{key}` is not known here and was ignored")]);
        assert_eq!(answer.get("warnings"), (!is_known).then_some(&warnings), "{key}");
    }
    for (key, value) in [
        ("response_format", json!({"type": "json_object"})),
        ("suffix", json!("x")),
        ("best_of", json!(4)),
        ("messages", json!([{"role": "user", "content": "hi"}])),
    ] {
        let answer = server.post(&with(key, value));
        assert_eq!(answer.status, 400, "{key}: {}", answer.body);
        assert!(answer.message().starts_with(&format!("`{key}` ")), "{}", answer.body);
    }
    // In a stream, the first piece says it.
    let mut streamed = with("tools", json!([]));
    streamed["stream"] = true.into();
    let answer = server.post(&streamed);
    let mut pieces = answer.body.lines().filter(|line| line.starts_with("data: "));
    assert!(
        pieces.next().is_some_and(|piece| piece.contains("was ignored")),
        "{}",
        answer.body
    );
    assert!(pieces.all(|piece| !piece.contains("was ignored")), "{}", answer.body);
}

#[test]
fn clients_that_leave_or_dawdle_take_nothing_with_them() {
    let server = Server::start("--context 2048");
    let long = json!({"prompt": [5], "max_tokens": 2000, "n": 8, "stream": true, "seed": 1}).to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        long.len()
    );
    for _ in 0..4 {
        let mut stream = server.connect();
        stream.write_all(head.as_bytes()).expect("a connection");
        stream.write_all(long.as_bytes()).expect("a connection");
        let mut some = [0; 200];
        stream.read_exact(&mut some).expect("it begins to answer");
        assert!(some.starts_with(b"HTTP/1.1 200"));
        stream.shutdown(Shutdown::Both).expect("a connection");
    }
    // Some that say half of what they have to say, and stay.
    let _half: Vec<TcpStream> = (0..20)
        .map(|index| {
            let mut stream = server.connect();
            let part = if index % 2 == 0 {
                &head.as_bytes()[..20]
            } else {
                head.as_bytes()
            };
            stream.write_all(part).expect("a connection");
            stream
        })
        .collect();
    let begin = Instant::now();
    server.is_well();
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "it was kept waiting by those that had left"
    );
}

#[test]
fn a_full_queue_says_come_back() {
    let server = Server::start("--context 2048 --queue 1");
    let long = json!({"prompt": vec![[5]; 64], "max_tokens": 2000, "seed": 1});
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let busy: Vec<_> = (0..12)
            .map(|_| {
                scope.spawn(|| {
                    let body = long.to_string();
                    let mut stream = server.connect();
                    let head = format!(
                        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    stream.write_all(head.as_bytes()).expect("a connection");
                    stream.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
                    let mut bytes = [0; 4096];
                    let count = stream.read(&mut bytes).unwrap_or(0);
                    let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
                    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
                    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
                    Answer {
                        status,
                        head: head.to_lowercase(),
                        body: body.into(),
                    }
                })
            })
            .collect();
        busy.into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    let full: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 503).collect();
    assert!(
        !full.is_empty(),
        "{:?}",
        answers.iter().map(|answer| answer.status).collect::<Vec<_>>()
    );
    assert!(full[0].head.contains("retry-after: 1"), "{}", full[0].head);
    assert!(full[0].message().contains("try again later"));
    // They have all left by now.
    let begin = Instant::now();
    while server.post(&json!({"prompt": "fox", "max_tokens": 1})).status != 200 {
        assert!(begin.elapsed() < Duration::from_secs(20), "the queue does not empty");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(unix)]
#[test]
fn a_signal_ends_it_in_order() {
    for signal in ["-INT", "-TERM"] {
        let mut server = Server::start("--context 2048");
        // A connection that stays open and idle, and an answer on its way.
        let _idle = server.connect();
        let long = json!({"prompt": [5], "max_tokens": 2000, "n": 64, "stream": true, "seed": 1}).to_string();
        let mut stream = server.connect();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{long}",
            long.len()
        );
        stream.write_all(head.as_bytes()).expect("a connection");
        let mut some = [0; 200];
        stream.read_exact(&mut some).expect("it begins to answer");
        let begin = Instant::now();
        assert_eq!(server.stop(signal), Some(0), "{signal}");
        assert!(
            begin.elapsed() < Duration::from_secs(12),
            "{signal}: {:?}",
            begin.elapsed()
        );
        assert!(TcpStream::connect(&server.address).is_err());
        let mut errors = String::new();
        let mut stderr = server.process.stderr.take().expect("it is piped");
        stderr.read_to_string(&mut errors).expect("text");
        assert_eq!(errors, "", "{signal}");
    }
}

#[test]
fn a_port_in_use_is_named() {
    let server = Server::start("");
    let port = server.address.rsplit(':').next().expect("a port");
    let output = server.place.run(&format!("serve run --port {port}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(said.starts_with(&format!("error: 127.0.0.1:{port}: ")), "{said}");
}

/// A server of a model with a tokenizer of a family.
fn server_of(family: &Family) -> Server {
    let place = Place::new();
    place.write("tokenizer.json", family.json.to_string());
    place.does("data prepare text.jsonl --tokenizer tokenizer.json --validation 0.2 -o data");
    Server::trained(place, "--context 64")
}

/// What `gpas generate` says after a prompt, and what it warns of.
fn generated(server: &Server, prompt: &str, options: &str) -> (Value, String) {
    server.place.write("prompts.jsonl", format!("{}\n", json!(prompt)));
    let output = server.place.run(&format!(
        "generate run --prompts prompts.jsonl --context 64 --json {options}"
    ));
    let warnings = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.success(), "{warnings}");
    (serde_json::from_slice(&output.stdout).expect("json"), warnings)
}

/// The texts of a stream, joined, and the text at once.
fn both_ways(server: &Server, asked: &Value) -> (String, String) {
    let text = |answer: &Value| answer["choices"][0]["text"].as_str().unwrap_or_default().to_string();
    let whole = text(&server.complete(asked));
    let mut streamed = asked.clone();
    streamed["stream"] = true.into();
    let answer = server.post(&streamed);
    let pieces = answer.body.lines().filter_map(|line| line.strip_prefix("data: "));
    let pieces = pieces.filter_map(|piece| serde_json::from_str::<Value>(piece).ok());
    (pieces.map(|piece| text(&piece)).collect(), whole)
}

#[test]
fn every_family_of_tokenizers_says_the_same_text_in_every_way() {
    for family in families() {
        let server = server_of(&family);
        let (tokenizer, name) = (family.tokenizer(), family.name);
        for (seed, text) in TEXTS.into_iter().enumerate() {
            let echo = json!({"prompt": text, "max_tokens": 0, "echo": true});
            let ids = tokenizer.encode(text).expect("tokens");
            let prompt = tokenizer.decode_plain(&ids).expect("text");
            assert!(!family.is_lossless || prompt == text, "{name}: {text}");
            assert_eq!(
                both_ways(&server, &echo),
                (prompt.clone(), prompt.clone()),
                "{name}: {text}"
            );

            let asked = json!({"prompt": text, "max_tokens": 20, "seed": seed, "logprobs": 0});
            let (streamed, whole) = both_ways(&server, &asked);
            assert_eq!(streamed, whole, "{name}: {text}");
            let (said, _) = generated(&server, text, &format!("--max-tokens 20 --seed {seed}"));
            assert_eq!(said["text"], whole, "{name}: {text}");
            let mut with_echo = asked.clone();
            with_echo["echo"] = true.into();
            let (streamed, whole_echo) = both_ways(&server, &with_echo);
            assert_eq!(streamed, whole_echo, "{name}: {text}");
            assert_eq!(whole_echo, format!("{prompt}{whole}"), "{name}: {text}");
        }
        // A prompt that ends within a character is echoed with the rest of it, which is U+FFFD if there is none.
        if family.knows_bytes {
            let mut ids = tokenizer.encode("a 漢字").expect("tokens");
            ids.pop();
            let echo = json!({"prompt": ids, "max_tokens": 0, "echo": true});
            assert_eq!(
                both_ways(&server, &echo),
                ("a 漢\u{fffd}".into(), "a 漢\u{fffd}".into()),
                "{name}"
            );
        }
    }
}

#[test]
fn special_tokens_of_a_prompt_are_taken_on_request_and_warned_of_otherwise() {
    let server = server_of(&families()[1]);
    let prompt = "<|im_start|>the cat<|im_end|>";
    let tokens = |special: Value| {
        let asked = json!({"prompt": prompt, "max_tokens": 1, "special_tokens": special});
        server.complete(&asked)["usage"]["prompt_tokens"].clone()
    };
    // The two of them, the opening token, and `▁the ▁ c a t`.
    assert_eq!(tokens(true.into()), 8);
    assert_eq!(tokens(false.into()), tokens(Value::Null));
    assert_eq!(server.post(&json!({"prompt": "a", "special_tokens": 1})).status, 400);
    let answer = server.complete(&json!({"prompt": prompt, "max_tokens": 1}));
    let warning = answer["warnings"][0].as_str().expect("a warning");
    assert!(
        warning.starts_with("the prompt spells out special tokens, 2 in all, the first `<|im_start|>`; "),
        "{warning}"
    );
    let answer = server.complete(&json!({"prompt": prompt, "max_tokens": 1, "special_tokens": true}));
    assert!(answer.get("warnings").is_none(), "{answer}");

    let (taken, warnings) = generated(&server, prompt, "--max-tokens 1 --special-tokens");
    assert_eq!((&taken["prompt_tokens"], warnings.as_str()), (&json!(8), ""));
    let (spelled, warnings) = generated(&server, prompt, "--max-tokens 1");
    assert_eq!(spelled["prompt_tokens"], tokens(false.into()));
    assert!(
        warnings.starts_with("warning: the prompts spell out special tokens, 2 in all, the first `<|im_start|>`; ")
            && warnings.contains("`--special-tokens`"),
        "{warnings}"
    );
    assert_eq!(generated(&server, "the cat", "--max-tokens 1").1, "");
}
