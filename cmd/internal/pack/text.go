package pack

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/simplifiedchinese"
	"golang.org/x/text/encoding/unicode"
	"golang.org/x/text/transform"
)

// Text returns the text of a file as UTF-8 without a byte order mark. The file
// may be UTF-8, UTF-16 with a byte order mark, or GB18030, as spreadsheets in
// Chinese write it.
//
// Which of UTF-8 and GB18030 it is shows where the first character beyond ASCII
// stands, and is decided by what follows there: a text in GB18030 is hardly ever
// UTF-8 by chance, and if it is for a while, what comes later is an error and not
// another text.
func Text(r io.Reader) io.Reader { return &decoder{in: r} }

// sample is how much of a file is looked at to tell its encoding.
const sample = 64 << 10

// decoder decodes a file while it is read.
type decoder struct {
	in io.Reader
	// head is what was read of in and not yet passed on.
	head    []byte
	begun   bool
	decided io.Reader // the rest of the file, once its encoding is known
	err     error     // of in
}

// Read implements io.Reader.
func (d *decoder) Read(p []byte) (int, error) {
	for d.decided == nil {
		if !d.begun {
			d.begin()
			continue
		}
		if n := ascii(d.head); n > 0 {
			n = copy(p, d.head[:n])
			d.head = d.head[n:]
			return n, nil
		}
		// What is left begins with the first character beyond ASCII.
		switch {
		case len(d.head) < sample && d.err == nil:
			d.fill()
		case len(d.head) == 0:
			return 0, d.err
		case d.validHead():
			d.decide(encoding.UTF8Validator, "UTF-8 from its beginning to its end")
		default:
			d.decide(simplifiedchinese.GB18030.NewDecoder(), "UTF-8 or GB18030")
		}
	}
	return d.decided.Read(p)
}

// fill reads more of the file.
func (d *decoder) fill() {
	if cap(d.head) < sample {
		d.head = append(make([]byte, 0, 2*sample), d.head...)
	}
	// No more than a sample, so that it does not depend on how the file comes
	// what is decided by.
	n := len(d.head)
	m, err := d.in.Read(d.head[n:sample])
	d.head, d.err = d.head[:n+m], err
}

// begin looks for a byte order mark.
func (d *decoder) begin() {
	if len(d.head) < 3 && d.err == nil {
		d.fill()
		return
	}
	d.begun = true
	switch {
	case bytes.HasPrefix(d.head, []byte("\xef\xbb\xbf")):
		d.head = d.head[3:]
		d.decide(encoding.UTF8Validator, "UTF-8, which its byte order mark says it is")
	case bytes.HasPrefix(d.head, []byte("\xff\xfe")), bytes.HasPrefix(d.head, []byte("\xfe\xff")):
		d.decide(unicode.UTF16(unicode.BigEndian, unicode.ExpectBOM).NewDecoder(), "UTF-16")
	}
}

// validHead reports whether what was read is UTF-8. A character may be cut at
// the end of the sample, but not at the end of the file.
func (d *decoder) validHead() bool {
	b := d.head
	if d.err == nil {
		for i := max(0, len(b)-utf8.UTFMax+1); i < len(b); i++ {
			if utf8.RuneStart(b[i]) && !utf8.FullRune(b[i:]) {
				b = b[:i]
			}
		}
	}
	return utf8.Valid(b)
}

// decide lets the rest of the file go through a transformer.
func (d *decoder) decide(t transform.Transformer, name string) {
	rest := io.MultiReader(bytes.NewReader(d.head), &failing{d.in, d.err})
	d.head = nil
	d.decided = &checked{in: transform.NewReader(rest, t), name: name, lossy: t != encoding.UTF8Validator}
}

// failing is a reader that may have failed before.
type failing struct {
	io.Reader

	err error
}

func (f *failing) Read(p []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return f.Reader.Read(p)
}

// ascii returns how many bytes of the beginning are ASCII.
func ascii(b []byte) int {
	for i, c := range b {
		if c >= utf8.RuneSelf {
			return i
		}
	}
	return len(b)
}

// checked is a decoded text that ends with an error where it could not be
// decoded.
type checked struct {
	in   io.Reader
	name string
	// lossy is true if what cannot be decoded comes out as U+FFFD.
	lossy bool
	tail  []byte // the last bytes, which may begin that character
}

var replacement = []byte(string(utf8.RuneError))

func (c *checked) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	cut := errors.Is(err, encoding.ErrInvalidUTF8) || errors.Is(err, transform.ErrShortSrc) || errors.Is(err, io.ErrUnexpectedEOF)
	if cut || c.lossy && c.replaced(p[:n]) {
		return 0, fmt.Errorf("the text is not %s; save it as UTF-8", c.name)
	}
	return n, err
}

// replaced reports whether the text has the character, which may have begun in
// what was read before.
func (c *checked) replaced(p []byte) bool {
	keep := len(replacement) - 1
	seam := append(c.tail, p[:min(len(p), keep)]...)
	found := bytes.Contains(seam, replacement) || bytes.Contains(p, replacement)
	if len(p) >= keep {
		seam = p
	}
	c.tail = bytes.Clone(seam[max(0, len(seam)-keep):])
	return found
}
