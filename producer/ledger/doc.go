// Package ledger is the memory that all replicas of packship share: a Kafka
// topic that says who may call for a shipment, and what came of it.
//
// The log decides. A process that wants to call appends an intent, reads its
// ledger partition up to that record, and may call only if at that point the
// intent holds the shipment. Kafka gives one order to the records of a
// partition, so every replica computes the same holder, whatever rebalances,
// pauses or replays are going on. The outcome is appended the same way, and
// results are published from the ledger, never from memory.
//
// The invariants:
//
//   - At every offset at most one attempt holds a shipment.
//   - A holder is taken over only when its attempt can no longer take effect, and
//     whoever takes over knows that the outcome of that attempt is unknown.
//   - News of success is never refused, and never forgotten while its record
//     lives; a failure counts only from the holder.
//   - What a round of attempts has answered is answered for good.
//
// The reading order: record.go has the records, fold.go what they mean, partition.go
// one partition as it is read, charges.go what attempts have cost, tail.go the reading, damage.go what is done when
// records are lost, stored.go how outcomes are read again, related.go and
// parcels.go what one shipment means for others, and ledger.go the
// methods that the rest of packship calls.
//
// Known limits. Memory and log forget a shipment after the horizon, not at the
// same moment on all replicas; a packed event that old is not called for anyway.
// A process that was started after a loss of records cannot know of the loss
// unless the records that are left show it.
package ledger
