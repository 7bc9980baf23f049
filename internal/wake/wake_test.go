package wake

import "testing"

func TestNotificationsBeforeAReceiveAreOne(t *testing.T) {
	c := New()
	for range 2 {
		c.Notify()
		c.Notify()
		<-c
		select {
		case <-c:
			t.Error("a second notification")
		default:
		}
	}
}
