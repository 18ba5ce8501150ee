package app

import (
	"io"
	"log/slog"
)

// NewLogger returns the logger that the settings ask for: JSON lines, or text
// if that is set, or by default on a terminal.
func (s *Settings) NewLogger(w io.Writer, terminal bool) *slog.Logger {
	options := &slog.HandlerOptions{Level: s.Level()}
	if s.LogFormat == "text" || terminal && !s.Given("LOG_FORMAT") {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}
