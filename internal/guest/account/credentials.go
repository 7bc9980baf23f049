package account

import "wrenn.dev/internal/credentials"

// Do calls f with the user's credentials, as credentials.Credentials.Do does.
func (u *User) Do(f func() error) error {
	c := credentials.Credentials{UID: u.UID, GID: u.GID, Groups: u.Groups}
	return c.Do(f)
}
