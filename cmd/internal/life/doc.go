// Package life tells the life of one order: from what the topics hold of it, it
// makes one time line and one sentence that says where the order stands and what
// to do about it.
//
// It reads nothing itself. A running connector gives it what its ledger knows;
// `packship trace` gives it everything.
package life
