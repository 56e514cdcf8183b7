//! The loader with workers of each kind: the same batches from all of them, whatever happens to the workers.

mod arguments;
mod chaos;
mod copies;
mod cursors;
mod deaths;
mod descriptions;
mod endings;
mod functions;
mod kinds;
mod limits;
mod results;
mod stuck;
mod support;
