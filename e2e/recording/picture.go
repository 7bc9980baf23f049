package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"strings"
	"time"
	"unicode"
)

// Sizes of the picture, in pixels.
const (
	columns  = 84
	charSize = 9 // the widest of usual fonts at 14 px
	lineSize = 21
	margin   = 18
	typing   = 700 * time.Millisecond // from a command to its run
	longest  = 2 * time.Second        // a command that takes longer is shown as if it took this
)

// style is of the picture: lines appear one after the other, but for readers who want no
// motion.
const style = `text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;fill:#e6edf3;white-space:pre}
.p{fill:#7ee787}.c{font-weight:600}
g{animation:show 1ms linear both}@keyframes show{from{opacity:0}to{opacity:1}}
@media (prefers-reduced-motion:reduce){g{animation:none}}`

// picture returns an SVG of a terminal in which the commands ran. It needs no other file,
// and has the whole text for those who do not see it.
func picture(steps []ran) []byte {
	var body bytes.Buffer
	row, at := 0, time.Duration(0)
	show := func(texts ...string) {
		fmt.Fprintf(&body, "<g style=\"animation-delay:%.2fs\">", at.Seconds())
		for _, text := range texts {
			row++
			fmt.Fprintf(&body, "<text x=\"%d\" y=\"%d\">%s</text>", margin, margin+row*lineSize-6, text)
		}
		body.WriteString("</g>\n")
	}
	for _, step := range steps {
		show(`<tspan class="p">$ </tspan><tspan class="c">` + escape(step.command) + `</tspan>`)
		at += typing + min(step.took, longest)
		var texts []string
		for _, line := range lines(step.output) {
			texts = append(texts, escape(line))
		}
		if len(texts) > 0 {
			show(texts...)
		}
	}
	width, height := columns*charSize+2*margin, row*lineSize+2*margin
	var out bytes.Buffer
	fmt.Fprintf(&out, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" role=\"img\" aria-labelledby=\"t d\">\n", width, height, width, height)
	fmt.Fprintf(&out, "<title id=\"t\">A terminal in which commands of wrenn ran</title>\n<desc id=\"d\">%s</desc>\n", escape(transcript(steps)))
	fmt.Fprintf(&out, "<style>%s</style>\n<rect width=\"%d\" height=\"%d\" rx=\"8\" fill=\"#161b22\"/>\n", style, width, height)
	out.Write(body.Bytes())
	out.WriteString("</svg>\n")
	return out.Bytes()
}

// transcript returns what the terminal shows as text.
func transcript(steps []ran) string {
	var all []string
	for _, step := range steps {
		all = append(append(all, "$ "+step.command), lines(step.output)...)
	}
	return strings.Join(all, "\n")
}

// escape returns text for the content of an element. Control characters, which come from
// a sandbox and which XML cannot hold, are left out.
func escape(text string) string {
	text = strings.Map(func(r rune) rune {
		if r != '\n' && unicode.IsControl(r) {
			return -1
		}
		return r
	}, text)
	var out bytes.Buffer
	_ = xml.EscapeText(&out, []byte(text)) // a buffer takes everything
	return strings.ReplaceAll(strings.ReplaceAll(out.String(), "&#xA;", "\n"), "&#39;", "'")
}
