// Package producer writes everything that packship writes to Kafka: result
// events, dead letters, and, through [Appender], the records of the ledger.
//
// It promises that a record that was given to it is appended at least once
// before the call returns without an error, acknowledged by all in-sync
// replicas, and that only the caller's context ends the attempt. Records of one
// partition are appended in the order in which they were given, because a
// partition never has more than one request in flight.
//
// It never uses the Writer of kafka-go, which gives up when a partition has no
// leader and which may deliver a record long after it has said that it will
// not. It knows nothing of the shipping API.
package producer
