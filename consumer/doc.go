// Package consumer reads packed events from Kafka and sees each of them through
// to an outcome.
package consumer
