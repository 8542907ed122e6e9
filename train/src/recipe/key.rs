//! A key of a recipe, and the macro in which each is declared once: `section!`.
//!
//! From a declaration follow the field of the recipe, how the key is read, its default, every message about it, whether a run may change it
//! and what `gpas config keys` says of it.

/// A key that a recipe may have.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its dotted name, such as `train.lr`.
    pub name: &'static str,
    /// Its default in words, if that depends on other keys or is none; otherwise the default recipe has it.
    pub default: Option<&'static str>,
    /// Whether a run may change it and still be the same run.
    pub may_change: bool,
    /// Whether it is one of the sizes that a preset stands for: naming a preset discards what earlier sources say of it.
    pub of_preset: bool,
    /// The key that this one gives in another form, such as `train.steps` for `train.tokens`. A recipe that is written has that one.
    pub instead_of: Option<&'static str>,
    pub(super) doc: &'static str,
    pub(super) allowed: fn() -> String,
}

impl Key {
    /// What it means, in sentences.
    pub fn doc(&self) -> &'static str {
        self.doc.trim()
    }

    /// Which values it may have, in words that complete "it must be".
    pub fn allowed(&self) -> String {
        (self.allowed)()
    }

    /// The table that it stands in, such as `model.gate`, and its name there.
    pub fn parts(&self) -> (&'static str, &'static str) {
        self.name.rsplit_once('.').unwrap_or(("", self.name))
    }

    /// Whether it stands in that table or in one below it.
    pub(super) fn is_in(&self, section: &str) -> bool {
        let rest = self.name.strip_prefix(section);
        rest.is_some_and(|rest| rest.starts_with('.'))
    }
}

/// Declares a section of a recipe: `pub struct NAME in "section", read from given { … }`, or, for a section whose values are kept in a type
/// from elsewhere, `keys of TYPE in "section", read from given by NAME { … }`.
///
/// A key is one entry:
///
/// ```text
/// /// What it means.
/// name: Type [flags] {
///     allowed: …,                     an `Allowed`, which reads the value
///     default: …,                     or `default("in words"): …` if it depends on other keys
///     resolve: |value| …,             optional: from the value that is read, or its default, to that of the recipe
/// }
/// ```
///
/// The flags are `may_change` and `of_preset`, as [`Key`] explains them. Expressions may use `?`, and ask for other keys with
/// `Section::key(given)?`, in any order that has no circle. Behind the keys may follow `tables { … }`, the sections inside this one, and
/// `other_forms { … }`, keys that give another key's value in another way and have no field.
macro_rules! section {
    (
        $(#[$attribute:meta])*
        pub struct $section:ident in $table:literal, read from $given:ident {
            $(
                $(#[doc = $doc:literal])+
                $(#[serde($($serde:tt)*)])?
                $key:ident: $type:ty $([$($flag:ident)+])? {
                    allowed: $allowed:expr,
                    default $(($words:literal))?: $default:expr,
                    $(resolve: |$value:ident| $resolve:expr,)?
                }
            )*
            $(tables {
                $(
                    $(#[doc = $inner_doc:literal])+
                    $(#[serde($($inner_serde:tt)*)])?
                    $inner:ident: $inner_type:ty = $inner_section:ident,
                )*
            })?
            $(other_forms $other_forms:tt)?
        }
    ) => {
        $(#[$attribute])*
        pub struct $section {
            $(
                $(#[doc = $doc])+
                $(#[serde($($serde)*)])?
                pub $key: $type,
            )*
            $($(
                $(#[doc = $inner_doc])+
                $(#[serde($($inner_serde)*)])?
                pub $inner: $inner_type,
            )*)?
        }

        impl $section {
            pub(super) fn from_given(given: &Given) -> Result<Self, RecipeError> {
                Ok(Self {
                    $($key: Self::$key(given)?,)*
                    $($($inner: $inner_section::from_given(given)?,)*)?
                })
            }
        }

        section! {
            @keys $section $table $given
            { $($key { [$($doc)+] [$($($flag)+)?] [$($words)?] $type; $allowed; $default; $(|$value| $resolve)? })* }
            { $($other_forms)? }
        }
    };
    (
        keys of $target:ident in $table:literal, read from $given:ident by $section:ident {
            $(
                $(#[doc = $doc:literal])+
                $key:ident: $type:ty $([$($flag:ident)+])? {
                    allowed: $allowed:expr,
                    default $(($words:literal))?: $default:expr,
                }
            )*
        }
    ) => {
        pub(super) struct $section;

        impl $section {
            pub fn from_given(given: &Given) -> Result<$target, RecipeError> {
                Ok($target { $($key: Self::$key(given)?,)* })
            }
        }

        section! {
            @keys $section $table $given
            { $($key { [$($doc)+] [$($($flag)+)?] [$($words)?] $type; $allowed; $default; })* }
            { }
        }
    };
    (
        @keys $section:ident $table:literal $given:ident
        { $($key:ident {
            [$($doc:literal)+] [$($flag:ident)*] [$($words:literal)?]
            $type:ty; $allowed:expr; $default:expr; $(|$value:ident| $resolve:expr)?
        })* }
        { $({ $(
            $(#[doc = $form_doc:literal])+
            $form:ident: $form_type:ty, instead of $instead_of:literal { allowed: $form_allowed:expr, }
        )* })? }
    ) => {
        impl $section {
            /// Every key of the section.
            pub(super) const KEYS: &'static [Key] = &[
                $({
                    #[allow(unused_mut, reason = "most keys have no flags")]
                    let mut key = Key {
                        name: concat!($table, ".", stringify!($key)),
                        default: section!(@words $($words)?),
                        may_change: false,
                        of_preset: false,
                        instead_of: None,
                        doc: concat!($($doc),+),
                        allowed: || $allowed.describe(),
                    };
                    $(key.$flag = true;)*
                    key
                },)*
                $($(
                    Key {
                        name: concat!($table, ".", stringify!($form)),
                        default: None,
                        may_change: false,
                        of_preset: false,
                        instead_of: Some($instead_of),
                        doc: concat!($($form_doc),+),
                        allowed: || $form_allowed.describe(),
                    },
                )*)?
            ];

            $(
                pub(super) fn $key($given: &Given) -> Result<$type, RecipeError> {
                    let value = match $given.value(concat!($table, ".", stringify!($key)), &$allowed)? {
                        Some(value) => value,
                        None => $default,
                    };
                    $(
                        let $value = value;
                        let value = $resolve;
                    )?
                    Ok(value)
                }
            )*

            $($(
                pub(super) fn $form($given: &Given) -> Result<Option<$form_type>, RecipeError> {
                    $given.value(concat!($table, ".", stringify!($form)), &$form_allowed)
                }
            )*)?
        }
    };
    (@words) => { None };
    (@words $words:literal) => { Some($words) };
}
pub(super) use section;
