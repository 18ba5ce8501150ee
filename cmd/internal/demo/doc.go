// Package demo tells the whole story of packship on one machine: an embedded
// Kafka broker, the simulated shipping API, sample orders with every kind of
// trouble, an outage, a second replica, a take-over and a replay. In the end it
// counts, in the API's own journal and in the topics, whether everything adds
// up.
//
// It runs the real connector; only what surrounds it is simulated.
package demo
