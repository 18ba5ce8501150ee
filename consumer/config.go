package consumer

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
)

// Config says what a [Consumer] reads and on what terms.
type Config struct {
	Brokers  []string // host:port, at least one
	GroupID  string
	ClientID string
	Topic    string // of the packed events

	// Name is what this process is called in the group's metadata. Empty means
	// the client id.
	Name string

	// Principal is the client as Kafka's rights name it, for messages about
	// them; may be empty.
	Principal string

	// Explain, if not nil, puts the error of a connection into words that say
	// what to do. It returns what it cannot put better.
	Explain func(error) error

	// Dialer connects the group member, and Client everything else. Both need
	// the same TLS and SASL settings. The client's transport should keep its
	// metadata for a second at most and be told the topic, or a partition
	// whose leader moves stands still for seconds.
	Dialer *kafka.Dialer
	Client *kafka.Client

	// SessionTimeout is how long the group waits for a sign of life. The
	// heartbeat and the network timeout of the group follow from it. All
	// members should have the same timeouts.
	SessionTimeout   time.Duration // 0 means 10 s; Kafka's floor is 6 s
	RebalanceTimeout time.Duration // 0 means 30 s

	// StartAtEnd is where a partition without a committed offset begins: at
	// its end if true, else at its beginning. The answer is committed before
	// the first record is read, so that it is given once. Partitions that are
	// added to the topic later begin at their beginning.
	StartAtEnd bool

	// Window and WindowBytes bound the unsettled records of a partition in
	// memory. Beyond them the partition is not fetched. Shelf bounds the
	// unsettled records of which only the offset is kept.
	Window      int // 0 means 1000
	WindowBytes int // 0 means 16 MiB
	Shelf       int // 0 means 1,000,000

	// Handover is how long a member waits with its first call after it got a
	// partition from another: one window of the rate limit.
	Handover time.Duration

	// StopTimeout bounds the wait for handlers when Run is told to stop, and
	// LeaveTimeout what comes after it: the last commit and leaving the group.
	// If the handlers return early there is more time for that.
	StopTimeout  time.Duration // 0 means 30 s
	LeaveTimeout time.Duration // 0 means 10 s

	// CatchUp, if not nil, is called when a generation has given this member
	// partitions. The gate stays closed until it has returned nil.
	CatchUp func(ctx context.Context) error

	// Resume, if not nil, is called with the text that was committed beside the
	// offset of a partition that begins here, before CatchUp.
	Resume func(metadata string)

	// CommitMetadata, if not nil, returns the text that is committed beside
	// the offsets. Kafka takes up to 4096 bytes; a longer text is left out.
	CommitMetadata func() string

	// Handler sees the records through. It may be a [Blocker] too.
	Handler Handler

	// Shares is among how many members the partitions may be shared out. 0 and
	// 1 give them all to one member, and to the same one for as long as it
	// lives.
	Shares int
	// Share, if not nil, is told what part of the work this member has, whenever
	// a generation gives it partitions and before the gate opens.
	Share func(s Share)

	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// The numbers that are no settings.
const (
	// commitEvery bounds how much is handled again after a crash, at two
	// commits a second.
	commitEvery = 500 * time.Millisecond
	// requestLimit bounds one exchange with a broker.
	requestLimit = 5 * time.Second
	// fetchBytes is the sweet spot of a real broker: smaller fetches cost it
	// up to twice the time, larger ones only memory.
	fetchBytes = 1 << 20
	// fetchWait is how long a broker may hold an empty fetch.
	fetchWait = 400 * time.Millisecond
	// joinBackoff paces the member after errors, and generations that follow
	// each other in a storm.
	joinBackoff = 400 * time.Millisecond
	// joinBurst is the number of generations that may follow each other
	// without a pause. A rolling restart of a few replicas stays below it.
	joinBurst = 10
	// partitionWatch is how soon added partitions are noticed.
	partitionWatch = 5 * time.Second
	// watchEvery is the age of the ends of the log in the status.
	watchEvery = 3 * time.Second
	// topicWatch is how often a missing topic is looked for.
	topicWatch = 500 * time.Millisecond
	// leaveLimit bounds leaving the group: a broker that does not answer must
	// not keep the process.
	leaveLimit = 5 * time.Second
	// lastCommitLimit bounds the tries of the commit before leaving.
	lastCommitLimit = 5 * time.Second
	// maxMetadata is what Kafka takes beside an offset by default.
	maxMetadata = 4096
)

// Validate reports everything that is wrong with the configuration.
func (c *Config) Validate() error {
	var problems []error
	check := func(ok bool, problem string) {
		if !ok {
			problems = append(problems, errors.New("consumer: "+problem))
		}
	}
	check(len(c.Brokers) > 0, "no brokers given")
	check(c.GroupID != "", "no group id given")
	check(c.Topic != "", "no topic given")
	check(c.Dialer != nil, "no dialer given")
	check(c.Client != nil, "no client given")
	check(c.Handler != nil, "no handler given")
	check(c.Logger != nil, "no logger given")
	check(c.Registerer != nil, "no registerer given")
	check(c.SessionTimeout >= 0, "the session timeout must not be negative")
	check(c.RebalanceTimeout >= 0, "the rebalance timeout must not be negative")
	check(c.Handover >= 0, "the handover must not be negative")
	check(c.StopTimeout >= 0, "the stop timeout must not be negative")
	check(c.LeaveTimeout >= 0, "the leave timeout must not be negative")
	check(c.Window >= 0, "the window must not be negative")
	check(c.WindowBytes >= 0, "the window in bytes must not be negative")
	check(c.Shares >= 0, "the shares must not be negative")
	check(c.Shelf >= 0, "the shelf must not be negative")
	return errors.Join(problems...)
}

// withDefaults returns the configuration with every zero that stands for a
// default replaced.
func (c Config) withDefaults() Config {
	setDefault(&c.Name, c.ClientID)
	setDefault(&c.SessionTimeout, 10*time.Second)
	setDefault(&c.RebalanceTimeout, 30*time.Second)
	setDefault(&c.StopTimeout, 30*time.Second)
	setDefault(&c.LeaveTimeout, leaveLimit+lastCommitLimit)
	setDefault(&c.Window, 1000)
	setDefault(&c.WindowBytes, 16<<20)
	setDefault(&c.Shelf, 1_000_000)
	return c
}

func setDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// heartbeat is the time between two signs of life. It is also how late a standby
// hears that the partitions are to be given to another member.
func (c *Config) heartbeat() time.Duration { return min(c.SessionTimeout/10, 300*time.Millisecond) }

// groupTimeout bounds an exchange with the group's coordinator. A heartbeat
// that is not answered is noticed after at most heartbeat + groupTimeout, which
// must be less than the session: by the time the group gives the partitions to
// another member, this one has closed its gate.
func (c *Config) groupTimeout() time.Duration { return min(c.SessionTimeout/2, 5*time.Second) }
