//! scratch
use std::time::Instant;
fn peak() -> String { std::fs::read_to_string("/proc/self/status").unwrap().lines().find(|l| l.starts_with("VmHWM")).unwrap().to_string() }
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let t = Instant::now();
    match a[1].as_str() {
        "corpus" => println!("{:?}", gpas_data::corpus::default_corpus(std::path::Path::new(&a[2]), false)),
        "bpe" => { let d = gpas_data::source::Documents::open(&[a[2].clone()], Default::default()).unwrap();
            let r = gpas_data::bpe::train_bpe(d, a[3].parse().unwrap(), false).unwrap(); println!("{} {} {}", r.vocab_size, r.documents, r.text_bytes); r.save(a[4].as_ref()).unwrap(); }
        "prepare" => { let r = gpas_data::prepare::prepare(&gpas_data::prepare::PrepareOptions{ sources: vec![a[2].clone()], tokenizer: a[3].clone().into(), validation: a[4].parse().unwrap(), out: a[5].clone().into(), read: Default::default(), end_of_document: None, quiet: false }).unwrap();
            println!("{} {}", r.manifest.train.tokens, r.manifest.validation.tokens); }
        "inspect" => println!("{}", gpas_data::store::inspect(a[2].as_ref(), 2).unwrap()),
        "verify" => println!("{:?}", gpas_data::store::verify(a[2].as_ref())),
        _ => {}
    }
    println!("{:.2}s {}", t.elapsed().as_secs_f64(), peak());
}
