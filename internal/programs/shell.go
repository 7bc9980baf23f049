package programs

// LoginShell is a script for /bin/sh that becomes a login shell: bash, else sh. A TERM
// that the sandbox does not know, such as xterm-kitty, becomes xterm-256color, which such
// terminals understand: editors would refuse to start.
const LoginShell = `known=
case "$TERM" in ''|dumb) ;; *)
	for d in "$HOME/.terminfo" /etc/terminfo /lib/terminfo /usr/lib/terminfo /usr/share/terminfo; do
		[ -e "$d/${TERM%"${TERM#?}"}/$TERM" ] && known=1
	done
	[ "$known" ] || export TERM=xterm-256color
esac
unset d known
if command -v bash >/dev/null; then exec bash -l; else exec sh -l; fi`
