//! `gpas serve`: a run's model behind OpenAI's completions interface.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::sync_channel;
use std::thread;

use burn::tensor::backend::AutodiffBackend;
use clap::Args;

use super::opened::OpenedRun;
use crate::failure::{Failure, Result};
use crate::number::{number, whole};
use gpas_serve::generate::TOGETHER;
use gpas_serve::inference::Context;
use gpas_serve::server::worker::work;
use gpas_serve::server::{Limits, ServedModel, seconds_since_1970, serve};
use gpas_train::backend::{BackendChoice, BackendTask};
use gpas_train::signals::{Stop, StopRequest};

/// Serve a run's model through OpenAI's completions interface
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  gpas serve runs/pre_gpas-nano-001
  curl http://127.0.0.1:8080/v1/completions -d '{\"prompt\": \"The meaning of\", \"max_tokens\": 20}'
  lm_eval --model local-completions --tasks TASK --model_args \\
    model=DIR,base_url=http://127.0.0.1:8080/v1/completions,tokenizer_backend=huggingface

DIR is a directory with the tokenizer, as `gpas export` writes it; trust_remote_code=True is needed where the model is no stock LLaMA. There
are POST /v1/completions (prompts as text or token ids, echo, logprobs, stop, seed, n, stream, special_tokens), GET /v1/models and
GET /health.")]
pub struct ServeArgs {
    /// The run directory, for its newest checkpoint; with @STEP or @best, for another
    #[arg(value_name = "RUN[@STEP|@best]")]
    run: PathBuf,
    /// Address to listen on; beyond this machine anybody who reaches it may use it
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on; 0 for any
    #[arg(long, value_name = "PORT", default_value_t = 8080, value_parser = number::<u16>)]
    port: u16,
    /// Positions that may be used by prompt and text together [default: those of a sequence in training; of an imported model all]
    #[arg(long, value_name = "N", value_parser = number::<usize>)]
    context: Option<usize>,
    /// Requests that may wait for the model; more are told to come back
    #[arg(long, value_name = "N", default_value_t = Limits::default().queue as u64, value_parser = whole(1..=1 << 16))]
    queue: u64,
    /// Texts that go through the model at a time; each keeps its keys and values in memory
    #[arg(long, value_name = "N", default_value_t = TOGETHER as u64, value_parser = whole(1..=1 << 16))]
    together: u64,
}

/// Runs the command until a signal ends it.
///
/// # Errors
/// If the run cannot be read, or the address cannot be listened on.
pub fn run(args: ServeArgs, backend: Option<BackendChoice>) -> Result<()> {
    let opened = OpenedRun::open(&args.run, backend)?;
    let context = opened.context(args.context)?;
    let address = SocketAddr::new(args.host, args.port);
    let listener = TcpListener::bind(address).map_err(Failure::during(address))?;
    if !args.host.is_loopback() {
        complain!(
            "warning: anybody who reaches {} may use the model; there is no password",
            args.host
        );
    }
    let name = args.run.canonicalize().unwrap_or(args.run);
    let name = name
        .file_name()
        .unwrap_or(name.as_os_str())
        .to_string_lossy()
        .into_owned();
    let selected = opened.selected;
    selected.run(Serving {
        opened,
        listener,
        name,
        context,
        queue: args.queue as usize,
        together: args.together as usize,
    })?
}

/// Stops the server when the model's thread ends, by a panic too, so that no client waits for an answer that will not come.
struct StopAtEnd<'a>(&'a StopRequest);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.request(Stop::Terminate);
        }
    }
}

struct Serving {
    opened: OpenedRun,
    listener: TcpListener,
    name: String,
    context: Context,
    queue: usize,
    together: usize,
}

impl BackendTask for Serving {
    type Output = Result<()>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Self::Output {
        let model = self.opened.model::<B>(&device)?;
        let (vocab, context) = (self.opened.config.vocab, self.context);
        let (jobs, taken) = sync_channel(self.queue);
        let served = ServedModel {
            name: self.name,
            created: seconds_since_1970(),
            tokenizer: self.opened.tokenizer.clone(),
            vocab,
            context,
            limits: Limits {
                queue: self.queue,
                ..Limits::default()
            },
            jobs,
            answers: 0.into(),
        };
        let stop = StopRequest::listen(|| ())?;
        let mut out = std::io::stdout();
        writeln!(
            out,
            "serving {} ({} tokens of context) on http://{}",
            served.name,
            context.tokens,
            self.listener.local_addr()?
        )?;
        out.flush()?;
        let cancel = AtomicBool::new(false);
        let generator = self.opened.generator(&model, context);
        // The model runs on this thread, the server on others.
        thread::scope(|scope| {
            let _guard = StopAtEnd(&stop);
            let server = scope.spawn(|| serve(self.listener, served, &stop, &cancel));
            work(&generator, &taken, self.together, &cancel);
            match server.join() {
                Ok(served) => Ok(served?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}
