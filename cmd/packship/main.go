// The packship command marks packed orders as shipped: it reads order-packed
// events from Kafka, calls the shipping API, and publishes what came of it.
package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"packship/cmd/internal/cli"
)

func main() { os.Exit(run()) }

// run turns signals into the end of a context: the first asks for an orderly
// stop, the second ends the process where it stands.
func run() int {
	ctx, stop := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		stop(errors.New("stopped by a signal"))
		<-signals
		os.Exit(1)
	}()
	return cli.Main(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
}
