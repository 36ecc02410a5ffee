//! Passwords of users who log in without an identity provider.
//!
//! The store has only an Argon2id hash in the PHC string format, which contains its parameters: they can be raised, and
//! older hashes can still be verified. Hashing takes tens of milliseconds and [`MEMORY_KIB`] of memory on purpose, so
//! callers run it on threads that may block, and few at a time.

use std::fmt;

use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params, Version};
use hearth_types::{Secret, UserId};
use sea_orm::ActiveValue::Set;
use sea_orm::{ActiveModelTrait as _, ColumnTrait as _, EntityTrait as _, PaginatorTrait as _, QueryFilter as _};

use crate::connection::{Store, Write};
use crate::entity::{login, user_account, user_password};
use crate::error::{Error, failed};
use crate::row::now_micros;
use crate::user::User;

/// Minimum characters of a password.
///
/// No kinds of characters are required, because only length helps (NIST SP 800-63B, 3.1.1.2).
pub const PASSWORD_CHARS_MIN: usize = 12;
/// Maximum bytes of a password: more add no security, and a client might send megabytes.
const PASSWORD_BYTES_MAX: usize = 1024;
/// Argon2id's parameters from the OWASP Password Storage Cheat Sheet: memory, passes, lanes.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// A hash with these parameters that no password has.
const DUMMY: &str = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$\
                      AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Reason why a text is not an acceptable password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// A short password could be guessed.
    #[error("a password has at least {PASSWORD_CHARS_MIN} characters")]
    TooShort,
    /// Longer passwords are rejected unhashed.
    #[error("a password has at most {PASSWORD_BYTES_MAX} bytes")]
    TooLong,
}

/// Stored hash of a password.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(String);

impl PasswordHash {
    /// Hashes a new password. Blocks: see the module documentation.
    ///
    /// # Errors
    /// [`PasswordError`].
    ///
    /// # Panics
    /// If the operating system has no random source (`getrandom(2)` fails).
    pub fn of(password: &Secret) -> Result<Self, PasswordError> {
        if password.expose().chars().count() < PASSWORD_CHARS_MIN {
            return Err(PasswordError::TooShort);
        }
        if password.expose().len() > PASSWORD_BYTES_MAX {
            return Err(PasswordError::TooLong);
        }
        let hash = hasher().hash_password(password.expose().as_bytes());
        Ok(Self(hash.expect("the length is checked, and there is a random source").to_string()))
    }

    /// Returns a hash that no password has and that takes as long to verify as any other.
    ///
    /// Verify it for unknown users, so that the time does not reveal that they are unknown.
    #[must_use]
    pub fn dummy() -> Self {
        Self(DUMMY.to_owned())
    }

    /// Returns `true` if `password` has this hash. Blocks: see the module documentation.
    #[must_use]
    pub fn verify(&self, password: &Secret) -> bool {
        let password = password.expose();
        password.len() <= PASSWORD_BYTES_MAX && hasher().verify_password(password.as_bytes(), self.0.as_str()).is_ok()
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

fn hasher() -> Argon2<'static> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).expect("within what Argon2 allows");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

impl Store {
    /// Sets or removes the password of a user and deletes their logins. Returns `false` if the user does not exist.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Commit`].
    pub async fn set_password(&self, user_id: UserId, password: Option<&PasswordHash>) -> Result<bool, Error> {
        let write = self.begin("setting the password of user", user_id).await?;
        let failed = |error| write.failed(error);
        let user = user_account::Entity::find_by_id(user_id.as_uuid()).one(&write.transaction).await.map_err(failed)?;
        if user.is_none() {
            return Ok(false);
        }
        user_password::Entity::delete_by_id(user_id.as_uuid()).exec(&write.transaction).await.map_err(failed)?;
        if let Some(PasswordHash(hash)) = password {
            let row = user_password::ActiveModel {
                user_id: Set(user_id.as_uuid()),
                hash: Set(hash.clone()),
                set_at_us: Set(now_micros()),
            };
            row.insert(&write.transaction).await.map_err(failed)?;
        }
        // Logins made with the old password are deleted.
        login::Entity::delete_many()
            .filter(login::Column::UserId.eq(user_id.as_uuid()))
            .exec(&write.transaction)
            .await
            .map_err(failed)?;
        write.commit().await?;
        Ok(true)
    }

    /// Returns the user with an address and the hash of their password; `None` if they have none.
    ///
    /// # Errors
    /// [`Error::Query`], [`Error::Damaged`].
    pub async fn password_by_email(&self, email: &str) -> Result<Option<(User, PasswordHash)>, Error> {
        let Some(user) = self.user_by_email(email).await? else { return Ok(None) };
        let row = user_password::Entity::find_by_id(user.id.as_uuid()).one(&self.database).await;
        let row = row.map_err(failed("reading the password of user", user.id))?;
        Ok(row.map(|row| (user, PasswordHash(row.hash))))
    }

    /// Returns `true` if a user has a password.
    ///
    /// # Errors
    /// [`Error::Query`].
    pub async fn has_password(&self, user_id: UserId) -> Result<bool, Error> {
        let query = user_password::Entity::find_by_id(user_id.as_uuid()).count(&self.database);
        Ok(query.await.map_err(failed("reading the password of user", user_id))? > 0)
    }

    /// Returns `true` if any user has a password.
    ///
    /// # Errors
    /// [`Error::Query`].
    pub async fn has_passwords(&self) -> Result<bool, Error> {
        let row = user_password::Entity::find().one(&self.database).await;
        Ok(row.map_err(failed("looking for", "users with passwords"))?.is_some())
    }
}

/// Returns `true` if this is still the user's password.
pub(crate) async fn is_current(write: &Write, user_id: UserId, password: &PasswordHash) -> Result<bool, Error> {
    let row = user_password::Entity::find_by_id(user_id.as_uuid()).one(&write.transaction).await;
    Ok(row.map_err(|error| write.failed(error))?.is_some_and(|row| row.hash == password.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(text: &str) -> Result<PasswordHash, PasswordError> {
        PasswordHash::of(&Secret::new(text))
    }

    #[test]
    fn a_password_verifies_and_is_not_printed() {
        let password = hash("correct horse battery").expect("long enough");
        assert!(password.0.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", password.0);
        assert!(password.verify(&Secret::new("correct horse battery")));
        for wrong in ["", "correct horse", "correct horse battery ", &"x".repeat(2000)] {
            assert!(!password.verify(&Secret::new(wrong)), "{wrong}");
        }
        assert_ne!(password, hash("correct horse battery").expect("long enough"), "each hash has its own salt");
        assert_eq!(format!("{password:?}"), "<redacted>");
        assert!(!PasswordHash("$argon2id$".to_owned()).verify(&Secret::new("anything at all")));
    }

    #[test]
    fn the_dummy_hash_takes_as_long_as_any() {
        let (real, dummy) = (hash("correct horse battery").expect("long enough"), PasswordHash::dummy());
        let shape = |hash: &PasswordHash| {
            let parts = hash.0.split('$').map(str::to_owned).collect::<Vec<_>>();
            (parts[1..4].to_vec(), parts[4].len(), parts[5].len())
        };
        assert_eq!(shape(&real), shape(&dummy));
        for password in ["", "correct horse battery"] {
            assert!(!dummy.verify(&Secret::new(password)));
            let parsed = hasher().verify_password(password.as_bytes(), dummy.0.as_str());
            assert!(matches!(parsed, Err(argon2::password_hash::Error::PasswordInvalid)), "it is hashed: {parsed:?}");
        }
    }

    #[test]
    fn too_short_and_too_long_passwords_are_rejected() {
        for (text, expected) in [
            (String::new(), Err(PasswordError::TooShort)),
            ("x".repeat(11), Err(PasswordError::TooShort)),
            ("é".repeat(11), Err(PasswordError::TooShort)),
            ("é".repeat(12), Ok(())),
            ("x".repeat(1024), Ok(())),
            ("x".repeat(1025), Err(PasswordError::TooLong)),
        ] {
            assert_eq!(hash(&text).map(drop), expected, "{text}");
        }
    }
}
