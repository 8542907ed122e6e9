//! What is asked of a trained run from the command line: logits, text, scores, a server.

mod place;

use place::Place;
use safetensors::SafeTensors;

/// With a run that has been trained for three steps.
fn trained() -> Place {
    let place = Place::prepared();
    place.does("train tiny.toml --plain -o run");
    place
}

#[test]
fn logits_are_written_for_every_token() {
    let place = trained();
    place.does("logits run --ids 5,17,9 --out logits.safetensors");
    place.does("logits run --ids 5,17 -o shorter.safetensors");
    let read = |name: &str| {
        let bytes = std::fs::read(place.path(name)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let view = file.tensor("logits").unwrap();
        assert_eq!(view.dtype(), safetensors::Dtype::F32);
        let floats = view
            .data()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes));
        (view.shape().to_vec(), floats.collect::<Vec<_>>())
    };
    let (shape, values) = read("logits.safetensors");
    assert_eq!(shape, [3, 300]);
    assert!(values.iter().all(|value| value.is_finite()) && values.iter().any(|value| *value != 0.0));
    // A position sees nothing of what comes later.
    let (shorter_shape, shorter) = read("shorter.safetensors");
    assert_eq!(shorter_shape, [2, 300]);
    for (a, b) in shorter.iter().zip(&values) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }

    place.refuses(
        "logits run --ids 5,300 -o none.safetensors",
        "token id 300 is outside the model's vocabulary of 300",
        "an id is 0 to 299",
    );
    let many = vec!["1"; 17].join(",");
    place.refuses(
        &format!("logits run --ids {many} -o none.safetensors"),
        "17 tokens are more than the 16 that the model was trained on",
        "shorten the text, or let it run past what was trained with `--context N`",
    );
    place.does(&format!("logits run --ids {many} --context 17 -o longer.safetensors"));
    place.refuses(
        "logits run --ids 1 --context 4000 -o none.safetensors",
        "the model has no positions beyond 2048, so a context of 4000 cannot be had",
        "`--context` is at most 2048",
    );
}
