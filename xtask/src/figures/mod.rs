//! Figures as they are shown: statistics, tables, plots.

pub mod plot;
pub mod statistics;
pub mod table;
