package upstream

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"packship/schema"
)

// The feature field carries serial numbers of goods, and for shops that also
// sell over the counter the store that ships:
//
//	feature    = entry , { ";" , entry } ;
//	entry      = code-entry | store-id | store-type ;
//	code-entry = code-key , "=" , item , { "|" , item } ;
//	code-key   = "identCode" | "machineCode" ;
//	item       = oid , ":" , code , { "," , code } ;
//	store-id   = "retailStoreId" , "=" , code ;
//	store-type = "retailStoreType" , "=" , ( "STORE" | "WAREHOUSE" ) ;
//	oid        = a sub-order id ;
//	code       = any characters but control characters, white space,
//	             quotation marks and the delimiters ; | : , = ;
//
// There is no escape: a serial number that holds a delimiter cannot be sent.

// feature is what a feature field says.
type feature struct {
	oids []featureOID // the sub-orders that it names
	// storeID and storeType are positions from 1, 0 if the entry is missing.
	storeID, storeType int
}

type featureOID struct {
	id  string
	pos int
	// codes is how many codes it has, 0 if they could not be read to the end.
	codes int
}

// featureError is a defect of a feature field at a position, counted in
// characters from 1.
type featureError struct {
	pos  int
	what string
}

func (e featureError) String() string { return fmt.Sprintf("feature, character %d: %s", e.pos, e.what) }

// parseFeature reads a feature field. It returns its defects, as many as are
// worth reporting: after one, it goes on with the next entry.
func parseFeature(s string) (feature, []featureError) {
	p := featureParser{rest: s, pos: 1, seen: map[string]int{}}
	for {
		p.entry()
		if !p.skipTo(";") || len(p.errs) == maxReported {
			return p.feature, p.errs
		}
	}
}

// featureParser reads a feature field from left to right.
type featureParser struct {
	rest string
	pos  int // of the first character of rest
	feature
	errs []featureError
	seen map[string]int // keys, with their positions
}

// featureDelimiters end a word.
const featureDelimiters = ";|:,="

func (p *featureParser) fail(pos int, format string, args ...any) {
	p.errs = append(p.errs, featureError{pos, fmt.Sprintf(format, args...)})
}

// peek returns the next character, 0 at the end.
func (p *featureParser) peek() rune {
	if p.rest == "" {
		return 0
	}
	r, _ := utf8.DecodeRuneInString(p.rest)
	return r
}

// advance drops n bytes, which are whole characters.
func (p *featureParser) advance(n int) {
	p.pos += utf8.RuneCountInString(p.rest[:n])
	p.rest = p.rest[n:]
}

// skipTo drops everything up to and with the delimiter, and reports whether
// there was one.
func (p *featureParser) skipTo(delimiter string) bool {
	i := strings.Index(p.rest, delimiter)
	if i < 0 {
		p.advance(len(p.rest))
		return false
	}
	p.advance(i + len(delimiter))
	return true
}

// word reads up to the next delimiter.
func (p *featureParser) word() (word string, pos int) {
	pos = p.pos
	n := strings.IndexAny(p.rest, featureDelimiters)
	if n < 0 {
		n = len(p.rest)
	}
	word = p.rest[:n]
	p.advance(n)
	return word, pos
}

// expect reads one delimiter.
func (p *featureParser) expect(delimiter rune, after string) bool {
	if p.peek() != delimiter {
		p.fail(p.pos, "expected %q after %s, found %s", string(delimiter), after, p.found())
		return false
	}
	p.advance(1)
	return true
}

// found names the next character for a message.
func (p *featureParser) found() string {
	if p.rest == "" {
		return "the end"
	}
	return fmt.Sprintf("%q", string(p.peek()))
}

func (p *featureParser) entry() {
	key, pos := p.word()
	if key == "" {
		if p.peek() == 0 || p.peek() == ';' {
			p.fail(pos, "empty entry; entries are separated by one ';' and the last one has none after it")
		} else {
			p.fail(pos, "expected a key, found %s", p.found())
		}
		return
	}
	switch key {
	case "identCode", "machineCode", "retailStoreId", "retailStoreType":
	default:
		p.fail(pos, "unknown key %q; keys are identCode, machineCode, retailStoreId, retailStoreType", cut(key, 40))
		return
	}
	if first := p.seen[key]; first != 0 {
		p.fail(pos, "key %s is there a second time, first at character %d", key, first)
		return
	}
	p.seen[key] = pos
	switch key {
	case "retailStoreId":
		p.storeID = pos
	case "retailStoreType":
		p.storeType = pos
	}
	if !p.expect('=', key) {
		return
	}
	switch key {
	case "retailStoreId":
		if _, _, ok := p.code("the store id"); ok {
			p.end(key)
		}
	case "retailStoreType":
		if kind, at := p.word(); kind != "STORE" && kind != "WAREHOUSE" {
			p.fail(at, "retailStoreType must be STORE or WAREHOUSE, got %q", cut(kind, 40))
		} else {
			p.end(key)
		}
	default:
		p.items(key)
	}
}

// end checks that the entry ends here.
func (p *featureParser) end(what string) bool {
	if r := p.peek(); r != 0 && r != ';' {
		p.fail(p.pos, "expected ';' or the end after %s, found %s", what, p.found())
		return false
	}
	return true
}

// items reads the items of a code entry.
func (p *featureParser) items(key string) {
	oids := map[string]bool{}
	codes := map[string]bool{}
	for {
		oid, pos := p.word()
		switch {
		case !schema.ValidID(oid):
			p.fail(pos, "%q is no sub-order id: it must be a whole number from 1 to 9223372036854775807", cut(oid, 40))
			return
		case oids[oid]:
			p.fail(pos, "sub-order %s is there a second time in %s; put its codes together, separated by commas", oid, key)
			return
		}
		oids[oid] = true
		p.oids = append(p.oids, featureOID{id: oid, pos: pos})
		if !p.expect(':', "sub-order "+oid) {
			return
		}
		count := 0
		for {
			code, at, ok := p.code("a code of sub-order " + oid)
			if !ok {
				return
			}
			count++
			if codes[code] {
				p.fail(at, "code %q is there a second time in %s", cut(code, 40), key)
				return
			}
			codes[code] = true
			if p.peek() != ',' {
				break
			}
			p.advance(1)
		}
		more := p.peek() == '|'
		if !more && !p.end("a code of sub-order "+oid) {
			return
		}
		p.oids[len(p.oids)-1].codes = count
		if !more {
			return
		}
		p.advance(1)
	}
}

// code reads a code or store id.
func (p *featureParser) code(what string) (code string, pos int, ok bool) {
	code, pos = p.word()
	if code == "" {
		p.fail(pos, "expected %s, found %s", what, p.found())
		return "", pos, false
	}
	i := 0
	for _, r := range code {
		if unicode.IsSpace(r) || unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Quotation_Mark) || r == utf8.RuneError {
			p.fail(pos+i, "%s must not hold %q", what, string(r))
			return "", pos, false
		}
		i++
	}
	return code, pos, true
}

// missingOIDs returns the sub-orders that the feature names and that are not
// known, each once, as many as are worth reporting.
func (f *feature) missingOIDs(known func(oid string) bool) []featureOID {
	var missing []featureOID
	told := map[string]bool{}
	for _, oid := range f.oids {
		if len(missing) == maxReported {
			break
		}
		if !known(oid.id) && !told[oid.id] {
			told[oid.id] = true
			missing = append(missing, oid)
		}
	}
	return missing
}

// miscounted returns the places where a sub-order has not as many codes as
// pieces, as many as are worth reporting. Sub-orders of 0 pieces are not judged.
func (f *feature) miscounted(pieces map[string]int) []featureError {
	var errs []featureError
	for _, oid := range f.oids {
		want := pieces[oid.id]
		if want == 0 || oid.codes == 0 || oid.codes == want {
			continue
		}
		if len(errs) == maxReported {
			break
		}
		errs = append(errs, featureError{oid.pos, fmt.Sprintf("sub-order %s must have a code for each piece: its quantity is %d, its codes are %d", oid.id, want, oid.codes)})
	}
	return errs
}
