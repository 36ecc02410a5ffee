//! Desired state of sandboxes.

use std::collections::{BTreeMap, BTreeSet};

use sea_orm::FromJsonQueryResult;
use sea_orm::entity::prelude::*;
use serde::{Deserialize, Serialize};

/// A JSON object whose values are texts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, FromJsonQueryResult)]
#[serde(transparent)]
pub struct Texts(pub BTreeMap<String, String>);

/// Rules for visitors of a sandbox's ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, FromJsonQueryResult)]
pub struct IngressRules {
    pub public: bool,
    pub host_mask: Option<String>,
    pub https_ports: BTreeSet<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "sandbox")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub execution_id: Uuid,
    pub team_id: Uuid,
    pub template_id: String,
    pub build_id: Uuid,
    pub alias: Option<String>,
    pub node_id: String,
    pub state: String,
    #[sea_orm(column_type = "JsonBinary")]
    pub metadata: Texts,
    #[sea_orm(column_type = "JsonBinary")]
    pub env_vars: Texts,
    pub envd_version: String,
    pub secured: bool,
    pub allow_internet_access: Option<bool>,
    pub timeout_ms: i64,
    pub started_at_us: i64,
    pub end_at_us: i64,
    pub vcpus: i64,
    pub memory_mib: i64,
    pub disk_mib: i64,
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub ingress: Option<IngressRules>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
