/**
 * A conversation that outlives its link. Each end keeps what it said until the other end has told that it has it (`got`),
 * counts what it has taken, and after a break both go on over a new link: from the byte that the other is at.
 *
 * It lies below the frames and looks like a link. Its two streams begin after the first link's `handOver` and `hello`. What
 * an end says is copied into a ring before it goes out; where the ring is full the sender of a snapshot waits, and CRIU
 * with it. Both ends say `got` when enough has come, and in any case twice a second: so a link on which nothing
 * comes is one that does not carry.
 *
 * A peer may name a position only between what it has acknowledged and what was really sent: it cannot choose what is sent.
 */
import { setImmediate as turn } from 'node:timers/promises'
import { Fault } from '../fault.ts'
import { encodeFrame, HEADER_BYTES } from '../format/wire.ts'
import type { Fd } from '../kernel/fd.ts'
import { openCondition } from './condition.ts'
import { type Filled, filling, type Link } from './link.ts'
import { openReplayBuffer } from './replay-buffer.ts'
import type { Session, SessionOptions } from './session.ts'
import { openSpliceBuffer, spliceOver } from './splice-buffer.ts'

/** How often `got` is said at least, and looked whether anything moves. */
const BEAT_MS = 500
/** A link on which nothing moves is given up for another after this long, or after a quarter of the time-out where that is less. */
const MOST_QUIET_MS = 15_000
const LEAST_QUIET_MS = 2000
/** Bytes that go out at a time. */
const STEP = 2 ** 20
const LITTLE = 64 * 2 ** 10

export function openSession({ peer, window, ring, grows, end: role, every, timeoutMs }: SessionOptions): Session {
  const kept = openReplayBuffer(window, ring?.region.window, grows)
  const passed = openSpliceBuffer()
  const over = new AbortController()
  const quietMs = Math.min(timeoutMs, Math.max(LEAST_QUIET_MS, Math.min(timeoutMs / 4, MOST_QUIET_MS)))
  let current: Link | undefined
  /** On the current link; and what may be there, with what is under way. */
  let sent = 0
  let mostSent = 0
  let received = 0
  let lastGot = 0
  let told = 0
  let inFrame = false
  let finished = false
  let stopped: Error | undefined
  let why = new Fault('LINK', 'nothing moved')
  /** When the sender's stream last moved: bytes of it came, or were acknowledged. A greeting alone is no progress. */
  let [moved, attached] = [0, 0]
  let beats: NodeJS.Timeout | undefined
  let beat = 0
  const news = openCondition()
  let pumps = 0

  function alive(): void {
    if (over.signal.aborted) throw over.signal.reason
  }

  function end(reason: Error): void {
    if (over.signal.aborted) return
    clearInterval(beats)
    over.abort(reason)
    current?.destroy(reason)
    current = undefined
    news.notify()
    leave()
  }

  /** What a pump still sends must stay as it is. */
  function leave(): void {
    if (!over.signal.aborted || pumps > 0) return
    ring?.give()
    passed.close()
  }

  function lost(link: Link, reason: unknown): void {
    if (link !== current) return
    current = undefined
    link.destroy()
    if (reason instanceof Fault) why = reason
    if (stopped !== undefined || finished) end(stopped ?? why)
    else if (!(reason instanceof Fault)) end(reason as Error)
    news.notify()
  }

  function sayGot(): void {
    if (inFrame || finished || current === undefined) return
    const frame = encodeFrame({ type: 'got', offset: received })
    if (kept.to - kept.from + frame.length > window) return
    kept.append(frame)
    told = received
    news.notify()
  }

  function tick(): void {
    const now = performance.now()
    // Time in which this process did not run is not silence.
    if (now - beat > 2 * BEAT_MS) moved += now - beat
    beat = now
    if (role === 'sender' && current !== undefined && kept.from === kept.to) moved = now
    if (now - moved > timeoutMs) {
      const message = `${why.message}; the link did not come back within ${timeoutMs / 1000} s`
      end(new Fault(role === 'sender' ? 'LINK' : 'TIMEOUT', message, why.hint === undefined ? {} : { hint: why.hint }))
    } else if (current !== undefined && now - Math.max(moved, attached) > quietMs) {
      lost(current, new Fault('LINK', `nothing moved for ${quietMs / 1000} s`))
    } else if (sent === kept.to) sayGot()
  }

  function watch(): void {
    if (beats !== undefined || over.signal.aborted) return
    moved = performance.now()
    beat = moved
    beats = setInterval(tick, Math.min(BEAT_MS, timeoutMs / 4)).unref()
  }

  async function pump(link: Link, greeting: Uint8Array | undefined): Promise<void> {
    pumps++
    try {
      if (greeting !== undefined) await link.outlet.send(greeting)
      for (let waited = false; link === current; ) {
        if (sent === kept.to) {
          await news.wait()
          waited = false
          continue
        }
        // What is said in one turn goes out in one piece: else each frame of a small image costs a call at both ends.
        if (!waited && kept.to - sent < LITTLE) {
          await turn()
          waited = true
          continue
        }
        waited = false
        const passage = passed.at(sent)
        const bytes = passage === undefined ? kept.at(sent, Math.min(STEP, passed.next(sent) - sent)) : undefined
        const upTo = passage?.to ?? sent + (bytes as Uint8Array).length
        mostSent = Math.max(mostSent, upTo)
        if (passage !== undefined) await spliceOver(link.outlet, passed.from(passage, sent), upTo - sent)
        else await link.outlet.send(bytes as Uint8Array, inFrame || upTo < kept.to)
        if (link !== current) return
        sent = upTo
        if (sent === kept.to) news.notify()
      }
    } catch (reason) {
      lost(link, reason)
    } finally {
      pumps--
      leave()
    }
  }

  function has(position: number, least: number): void {
    if (position < least || position > mostSent) {
      throw new Fault('FORMAT', `the other end says that it has ${position} bytes, of ${least} to ${mostSent}`)
    }
    if (role === 'sender' && position > kept.from) moved = performance.now()
    kept.forget(position)
    passed.forget(position)
    news.notify()
  }

  function acknowledged(position: number): void {
    // One that was under way when a link broke comes after the greeting of the next, which knew more.
    has(position, lastGot)
    lastGot = position
  }

  async function read(into: Uint8Array): Promise<number> {
    for (;;) {
      if (finished && current === undefined) return 0
      alive()
      const link = current
      if (link === undefined) {
        await news.wait()
        continue
      }
      let got = 0
      try {
        got = await link.inlet.read(into)
        if (got === 0) throw new Fault('LINK', 'the other end closed the link')
      } catch (reason) {
        lost(link, reason)
        continue
      }
      // What an old link brought after another took its place comes again.
      if (link !== current) continue
      received += got
      if (role === 'receiver') moved = performance.now()
      if (received - told >= every) sayGot()
      return got
    }
  }

  async function moreRoom(): Promise<void> {
    if (stopped !== undefined) throw stopped
    await news.wait()
    alive()
  }

  async function send(bytes: Uint8Array, more = false): Promise<void> {
    for (let rest = bytes; ; ) {
      alive()
      rest = rest.subarray(kept.append(rest))
      inFrame = more || rest.length > 0
      news.notify()
      if (rest.length === 0) break
      if (role === 'receiver')
        throw new Fault('LIMIT', `the other end does not say that it has got the ${window} bytes kept for it`)
      await moreRoom()
    }
    if (received - told >= every) sayGot()
  }

  async function fillInPlace(
    headBytes: number,
    most: number,
    fill: (room: Uint8Array) => Filled | undefined,
  ): Promise<void> {
    let room = kept.room(headBytes, most)
    for (alive(); room.length === 0; room = kept.room(headBytes, most)) await moreRoom()
    const filled = fill(room)
    if (filled !== undefined) kept.commit(filled.head, filled.bytes)
    news.notify()
    if (received - told >= every) sayGot()
  }

  async function passOn(pipe: Fd, most: number, head: (bytes: number) => Uint8Array): Promise<number> {
    for (alive(); ring !== undefined && current?.outlet.splice !== undefined && passed.worth(pipe); await moreRoom()) {
      const room = Math.min(most, window - (kept.to - kept.from) - HEADER_BYTES)
      const bytes = room <= 0 ? 0 : passed.take(pipe, room, kept.to + HEADER_BYTES)
      if (bytes === 0) continue
      kept.commit(head(bytes), bytes)
      news.notify()
      if (received - told >= every) sayGot()
      return bytes
    }
    return 0
  }

  return {
    link: {
      inlet: { fill: filling(read), read },
      outlet: {
        send,
        fillInPlace,
        passOn,
        settle: async () => {},
        async finish() {
          while (current === undefined || sent < kept.to) {
            alive()
            await news.wait()
          }
          finished = true
          await current.outlet.finish()
        },
      },
      duplex: true,
      peer,
      destroy: (reason = new Fault('ABORTED', 'closed')) => end(reason),
    },
    get received() {
      return received
    },
    get untouched() {
      return received === 0 && kept.from === 0
    },
    over: over.signal,
    quietMs,
    watch,
    blame(reason) {
      if (current === undefined) why = reason
    },
    acknowledged,
    attach(link, position, greeting) {
      alive()
      try {
        has(position, kept.from)
      } catch (reason) {
        end(reason as Error)
        throw reason
      }
      const before = current
      current = link
      // What the other end has is what it just said, and then what goes out from here.
      sent = mostSent = position
      attached = performance.now()
      watch()
      before?.destroy(new Fault('LINK', 'another link took its place'))
      news.notify()
      void pump(link, greeting)
    },
    async detached() {
      while (current !== undefined) await news.wait()
      alive()
    },
    stop(reason) {
      stopped ??= reason
      if (current === undefined) end(reason)
      news.notify()
    },
  }
}
