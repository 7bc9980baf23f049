package main

import (
	"errors"
	"syscall"
	"unsafe"
)

// ifreq is struct ifreq of netdevice(7), with the size that the kernel reads.
type ifreq struct {
	name [syscall.IFNAMSIZ]byte
	data [24]byte
}

// sockaddrIn is struct sockaddr_in of ip(7).
type sockaddrIn struct {
	family uint16
	port   uint16
	ip     [4]byte
	_      [8]byte
}

// rtentry is struct rtentry of <linux/route.h>.
type rtentry struct {
	_                  uint64
	dst, gateway, mask sockaddrIn
	flags              uint16
	_                  int16
	_                  uint64
	_                  uint64
	metric             int16
	device             *byte
	mtu, window        uint64
	irtt               uint16
}

// configureNetwork brings the loopback up and gives the device of ip= its
// address and default route. It changes nothing when the kernel did so already
// (CONFIG_IP_PNP).
func configureNetwork(ip address) error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return wrap("configure the network", err)
	}
	defer release(fd)
	if err := bringUp(fd, "lo"); err != nil {
		return err
	}
	if ip.client == [4]byte{} || configured(fd, ip) {
		return nil
	}
	if err := setAddress(fd, syscall.SIOCSIFADDR, ip.device, ip.client); err != nil {
		return wrap("set the address of "+ip.device, err)
	}
	if err := setAddress(fd, syscall.SIOCSIFNETMASK, ip.device, ip.mask); err != nil {
		return wrap("set the netmask of "+ip.device, err)
	}
	if err := bringUp(fd, ip.device); err != nil {
		return err
	}
	if ip.gateway == [4]byte{} {
		return nil
	}
	return wrap("set the default route", addDefaultRoute(fd, ip.gateway))
}

func request(device string) *ifreq {
	var r ifreq
	copy(r.name[:len(r.name)-1], device)
	return &r
}

func bringUp(fd int, device string) error {
	r := request(device)
	if err := ioctl(fd, syscall.SIOCGIFFLAGS, unsafe.Pointer(r)); err != nil {
		return wrap("find the network device "+device, err)
	}
	*(*uint16)(unsafe.Pointer(&r.data)) |= syscall.IFF_UP
	return wrap("bring up "+device, ioctl(fd, syscall.SIOCSIFFLAGS, unsafe.Pointer(r)))
}

// configured reports whether the device has the address already.
func configured(fd int, ip address) bool {
	r := request(ip.device)
	if err := ioctl(fd, syscall.SIOCGIFADDR, unsafe.Pointer(r)); err != nil {
		return false
	}
	return (*sockaddrIn)(unsafe.Pointer(&r.data)).ip == ip.client
}

func setAddress(fd int, what uintptr, device string, ip [4]byte) error {
	r := request(device)
	*(*sockaddrIn)(unsafe.Pointer(&r.data)) = sockaddrIn{family: syscall.AF_INET, ip: ip}
	return ioctl(fd, what, unsafe.Pointer(r))
}

func addDefaultRoute(fd int, gateway [4]byte) error {
	everything := sockaddrIn{family: syscall.AF_INET}
	route := rtentry{
		dst: everything, mask: everything, gateway: sockaddrIn{family: syscall.AF_INET, ip: gateway},
		flags: syscall.RTF_UP | syscall.RTF_GATEWAY,
	}
	err := ioctl(fd, syscall.SIOCADDRT, unsafe.Pointer(&route))
	if errors.Is(err, syscall.EEXIST) {
		return nil
	}
	return err
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
