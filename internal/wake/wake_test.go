package wake

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

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

func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begun := time.Now()
		if !Sleep(ctx, time.Second) || time.Since(begun) != time.Second {
			t.Errorf("it slept for %s", time.Since(begun))
		}
		if Sleep(ctx, time.Hour) || time.Since(begun) != time.Minute {
			t.Errorf("the context ended after a minute, and it slept for %s", time.Since(begun))
		}
	})
}
