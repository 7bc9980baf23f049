package template

import (
	"strings"

	"wrenn.dev"
)

// AnyImage in Images is every image, for every team.
const AnyImage = "*"

// Images are the images of a host from which teams may build: AnyImage, NAME for every
// team, or NAME=TEAM with the id of a team.
type Images []string

// Check returns an Invalid error for an entry that is none of these.
func (i Images) Check() error {
	for _, entry := range i {
		name, team, given := strings.Cut(entry, "=")
		if name == "" || given && (team == "" || name == AnyImage) {
			return wrenn.Errorf(wrenn.Invalid, "%.80q in templates.images: use \"*\", NAME, or NAME=TEAM with the id of a team", entry)
		}
	}
	return nil
}

// allow returns a NotFound error unless the team may use the image.
func (i Images) allow(name string, team wrenn.TeamID) error {
	for _, entry := range i {
		if entry == AnyImage || entry == name || entry == name+"="+string(team) {
			return nil
		}
	}
	return wrenn.Errorf(wrenn.NotFound, "there is no image %.80q for this team: the host's operator allows images by templates.images", name)
}
