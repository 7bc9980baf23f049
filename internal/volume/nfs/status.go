package nfs

import (
	"errors"

	"golang.org/x/sys/unix"
)

// status is an nfsstat3 (RFC 1813, section 2.6).
type status uint32

const (
	statusOK          status = 0
	statusPerm        status = 1
	statusIO          status = 5
	statusAccess      status = 13
	statusExist       status = 17
	statusIsDir       status = 21
	statusInval       status = 22
	statusStale       status = 70
	statusBadHandle   status = 10001
	statusNotSync     status = 10002
	statusBadCookie   status = 10003
	statusNotSupp     status = 10004
	statusTooSmall    status = 10005
	statusServerFault status = 10006
)

func (s status) Error() string { return "NFS status " + unix.ErrnoName(unix.Errno(s)) }

// numbers are the errors that have the same number in the protocol as in Linux.
var numbers = map[unix.Errno]bool{
	unix.EPERM: true, unix.ENOENT: true, unix.EIO: true, unix.ENXIO: true, unix.EACCES: true, unix.EEXIST: true,
	unix.EXDEV: true, unix.ENODEV: true, unix.ENOTDIR: true, unix.EISDIR: true, unix.EINVAL: true, unix.EFBIG: true,
	unix.ENOSPC: true, unix.EROFS: true, unix.EMLINK: true,
}

// others are the errors that have another number in the protocol.
var others = map[unix.Errno]status{
	unix.ENAMETOOLONG: 63, unix.ENOTEMPTY: 66, unix.EDQUOT: 69, unix.ESTALE: statusStale, unix.EOPNOTSUPP: statusNotSupp,
	unix.ELOOP: statusInval, unix.ETXTBSY: statusAccess, unix.EOVERFLOW: statusInval,
}

// statusOf returns the status of an error of a system call.
func statusOf(err error) status {
	if err == nil {
		return statusOK
	}
	if s, ok := errors.AsType[status](err); ok {
		return s
	}
	errno, ok := errors.AsType[unix.Errno](err)
	switch {
	case !ok:
		return statusServerFault
	case numbers[errno]:
		return status(errno)
	}
	if s, ok := others[errno]; ok {
		return s
	}
	return statusIO
}
