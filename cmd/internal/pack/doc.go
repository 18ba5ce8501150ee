// Package pack reads orders from JSON lines or CSV and makes packed events of
// them.
//
// It takes what spreadsheets really write: UTF-8 with or without a byte order
// mark, UTF-16, GB18030, commas, semicolons or tabs, ids wrapped as ="123". What
// a spreadsheet has spoilt, such as an id in scientific notation, it refuses and
// says how to export it again. The event of a line depends on nothing but the
// line, so that packing a file twice makes the same events, and the second time
// causes no calls. A file is read line by line, so that its size does not matter.
package pack
