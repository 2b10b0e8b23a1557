/**
 * One end of a conversation that outlives its links. Each end keeps what it sent until the other end acknowledges it
 * with a `got` frame, and counts what it received; after a break both go on over a new link, each from the byte that
 * the other has.
 *
 * A session lies below the frames and looks like a link. Its two streams begin after the first link's `handOver` and
 * `hello`. What an end sends is copied into a replay buffer before it goes out; while that is full the sender of a
 * snapshot waits, and CRIU with it. Both ends send `got` when enough has come, and in any case twice a second: so a
 * link on which nothing comes does not carry.
 *
 * A peer may name a position only between what it has acknowledged and what was really sent: it cannot choose what is
 * sent.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import { Fault } from '../fault.ts'
import { encodeFrame, HEADER_BYTES } from '../format/frame.ts'
import type { Fd } from '../kernel/fd.ts'
import type { Region } from '../kernel/mapped-memory.ts'
import { openCondition } from './condition.ts'
import { type Filled, filling, type Link } from './link.ts'
import { giveReplayMemory, ReplayBuffer, takeReplayMemory } from './replay-buffer.ts'
import { SpliceBuffer } from './splice-buffer.ts'

export interface SessionOptions {
  /** For messages. */
  peer: string
  /**
   * The sender of a snapshot waits in `send` for room; for a receiver, which sends little, a full window is a
   * `LIMIT`.
   */
  role: 'sender' | 'receiver'
  /** Told how many bytes more a receiver keeps for its peer: its memory grows up to the window. */
  onGrow?: (bytes: number) => void
  /**
   * How long the sender's stream may stand still, with a link or without. Then the session ends: the sender's with
   * `LINK`, the receiver's with `TIMEOUT`.
   */
  timeoutMs: number
}

/** A receiver keeps more than all acks of the largest snapshot: a sender that reads at all never fills it. */
export const RECEIVER_WINDOW = 4 * 2 ** 20
/**
 * `got` is sent each time that this many bytes were received. The sender's window is 8 times what a receiver waits for,
 * so the sender does not wait for a `got` on a link that carries. The receiver sends little: its acks must not fill its
 * window before it gets a `got`.
 */
const ACK_EVERY = { sender: 16 * 2 ** 10, receiver: 2 ** 20 }
/** How often `got` is sent at least, and how often the session checks whether anything moves. */
const TICK_MS = 500
/** A link on which nothing moves is dropped after this long, or after a quarter of the time-out where that is less. */
const MOST_QUIET_MS = 15_000
const LEAST_QUIET_MS = 2000
/** Bytes that are handed to a link at a time. */
const MOST_AT_ONCE = 2 ** 20
/** Fewer bytes wait for one turn of the event loop, so that more frames come together. */
const WORTH_SENDING = 64 * 2 ** 10

export class ResumableSession {
  /** Carries the frames. Once its `finish` has sent everything, the end of a connection is the end of the session. */
  readonly link: Link
  /** How long a link may be silent, in milliseconds. */
  readonly quietMs: number

  readonly #role: SessionOptions['role']
  readonly #timeoutMs: number
  /** A sender's replay buffer; given back when the session is over. */
  readonly #memory: Region | undefined
  /** What was sent and not yet acknowledged, and what is still to be sent. */
  readonly #replay: ReplayBuffer
  /** Where the replay buffer has gaps: bytes that are passed on by reference. */
  readonly #spliced = new SpliceBuffer()
  readonly #over = new AbortController()
  /** Aborted, with the reason, when the session is over. */
  readonly over: AbortSignal = this.#over.signal
  /**
   * Notified when there is another link or none, when there is more to send, and when the peer has acknowledged more.
   */
  readonly #changed = openCondition()

  /** The link that bytes go over now. */
  #current: Link | undefined
  /** Position in our stream up to which everything was handed to the current link. */
  #sent = 0
  /** The same, with what is being handed over: the peer cannot have more. */
  #mostSent = 0
  /** The position in the peer's last `got`. */
  #acknowledged = 0
  /** Bytes of the peer's stream that were read. Nobody else changes it. */
  received = 0
  /** How many of them our last `got` acknowledged. */
  #receivedAcknowledged = 0
  /** The last bytes in the replay buffer are a part of a frame: no `got` may follow them. */
  #inFrame = false
  /** All is sent and the link is closed for writing. */
  #finished = false
  /** The reason given to `stop`: no new link is waited for. */
  #stopped: Error | undefined
  /** Why there is no link, for the message when the session is given up. */
  #linkFault = new Fault('LINK', 'nothing moved')
  /** Links that may still be sending bytes of the buffers. */
  #pumps = 0

  /** Calls `#tick`. */
  #timer: NodeJS.Timeout | undefined
  /** Times of performance.now(). */
  #lastTick = 0
  /** When bytes of the sender's stream last came, or were acknowledged. A greeting alone is no progress. */
  #lastMoved = 0
  #lastAttached = 0

  constructor({ peer, role, onGrow, timeoutMs }: SessionOptions) {
    this.quietMs = Math.min(timeoutMs, Math.max(LEAST_QUIET_MS, Math.min(timeoutMs / 4, MOST_QUIET_MS)))
    this.#role = role
    this.#timeoutMs = timeoutMs
    this.#memory = role === 'sender' ? takeReplayMemory() : undefined
    this.#replay = new ReplayBuffer(this.#memory?.bytes ?? RECEIVER_WINDOW, this.#memory?.window, onGrow)
    const read = (into: Uint8Array): Promise<number> => this.#read(into)
    this.link = {
      inlet: { fill: filling(read), read },
      outlet: {
        send: (bytes, more) => this.#send(bytes, more),
        fillInPlace: (headBytes, most, fill) => this.#fillInPlace(headBytes, most, fill),
        passOn: (untouched, most, head) => this.#passOn(untouched, most, head),
        finish: () => this.#finish(),
      },
      duplex: true,
      peer,
      destroy: (reason = new Fault('ABORTED', 'closed')) => this.#end(reason),
    }
  }

  /** Nothing was ever acknowledged and nothing ever received: the conversation can begin again. */
  get untouched(): boolean {
    return this.received === 0 && this.#replay.from === 0
  }

  /** Starts the time-out: from now on something must move. */
  watch(): void {
    if (this.#timer !== undefined || this.over.aborted) return
    this.#lastMoved = this.#lastTick = performance.now()
    this.#timer = setInterval(() => this.#tick(), Math.min(TICK_MS, this.#timeoutMs / 4)).unref()
  }

  /** Notes why a new link could not be made: the session ends with this reason if none comes in time. */
  blame(reason: Fault): void {
    if (this.#current === undefined) this.#linkFault = reason
  }

  /** The peer has sent a `got` frame: it has `position` bytes. Throws `FORMAT` for a position that it cannot have. */
  acknowledged(position: number): void {
    // A `got` that was under way when a link broke comes after the greeting of the next link, which knew more.
    this.#forget(position, this.#acknowledged)
    this.#acknowledged = position
  }

  /**
   * Goes on over `link`, after `greeting`, from the `position` bytes that the peer has. The link before it is
   * dropped. For a position that the peer cannot have it throws `FORMAT` and ends the session.
   */
  attach(link: Link, position: number, greeting?: Uint8Array): void {
    this.over.throwIfAborted()
    try {
      this.#forget(position, this.#replay.from)
    } catch (reason) {
      this.#end(reason as Error)
      throw reason
    }
    const before = this.#current
    this.#current = link
    this.#sent = this.#mostSent = position
    this.#lastAttached = performance.now()
    this.watch()
    before?.destroy(new Fault('LINK', 'another link took its place'))
    this.#changed.notify()
    void this.#pump(link, greeting)
  }

  /** Resolves when there is no link. Throws the reason why the session is over. */
  async detached(): Promise<void> {
    while (this.#current !== undefined) await this.#changed.wait()
    this.over.throwIfAborted()
  }

  /** From now on nothing waits for room or for a new link: it is rejected with `reason`. */
  stop(reason: Error): void {
    this.#stopped ??= reason
    if (this.#current === undefined) this.#end(reason)
    this.#changed.notify()
  }

  async #read(into: Uint8Array): Promise<number> {
    for (;;) {
      if (this.#finished && this.#current === undefined) return 0
      this.over.throwIfAborted()
      const link = this.#current
      if (link === undefined) {
        await this.#changed.wait()
        continue
      }
      let bytes = 0
      try {
        bytes = await link.inlet.read(into)
        if (bytes === 0) throw new Fault('LINK', 'the other end closed the link')
      } catch (reason) {
        this.#drop(link, reason)
        continue
      }
      // What a link brought after another took its place comes again over that one.
      if (link !== this.#current) continue
      this.received += bytes
      if (this.#role === 'receiver') this.#lastMoved = performance.now()
      this.#sendGotIfDue()
      return bytes
    }
  }

  async #send(bytes: Uint8Array, more = false): Promise<void> {
    for (let rest = bytes; ; ) {
      this.over.throwIfAborted()
      rest = rest.subarray(this.#replay.append(rest))
      this.#inFrame = more || rest.length > 0
      this.#changed.notify()
      if (rest.length === 0) break
      if (this.#role === 'receiver') {
        throw new Fault('LIMIT', `the other end does not say that it has got the ${RECEIVER_WINDOW} bytes kept for it`)
      }
      await this.#moreRoom()
    }
    this.#sendGotIfDue()
  }

  async #fillInPlace(headBytes: number, most: number, fill: (room: Uint8Array) => Filled | undefined): Promise<void> {
    this.over.throwIfAborted()
    let room = this.#replay.room(headBytes, most)
    for (; room.length === 0; room = this.#replay.room(headBytes, most)) await this.#moreRoom()
    const filled = fill(room)
    if (filled !== undefined) this.#replay.commit(filled.head, filled.bytes)
    this.#changed.notify()
    this.#sendGotIfDue()
  }

  async #passOn(untouched: () => Fd | undefined, most: number, head: (bytes: number) => Uint8Array): Promise<number> {
    this.over.throwIfAborted()
    for (; ; await this.#moreRoom()) {
      const pipe = untouched()
      if (pipe === undefined || !this.#canPassOn(pipe)) return 0
      const room = Math.min(most, this.#replay.free - HEADER_BYTES)
      const bytes = room <= 0 ? 0 : this.#spliced.take(pipe, room, this.#replay.to + HEADER_BYTES)
      if (bytes === 0) continue
      this.#replay.commit(head(bytes), bytes)
      this.#changed.notify()
      this.#sendGotIfDue()
      return bytes
    }
  }

  #canPassOn(pipe: Fd): boolean {
    return this.#memory !== undefined && this.#current?.outlet.splice !== undefined && this.#spliced.isWorth(pipe)
  }

  /** Waits until there may be more room in the buffers. */
  async #moreRoom(): Promise<void> {
    if (this.#stopped !== undefined) throw this.#stopped
    await this.#changed.wait()
    this.over.throwIfAborted()
  }

  async #finish(): Promise<void> {
    while (this.#current === undefined || this.#sent < this.#replay.to) {
      this.over.throwIfAborted()
      await this.#changed.wait()
    }
    this.#finished = true
    await this.#current.outlet.finish()
  }

  #sendGotIfDue(): void {
    if (this.received - this.#receivedAcknowledged >= ACK_EVERY[this.#role]) this.#sendGot()
  }

  /** Sends `got`, if it may be sent now and there is room for it. */
  #sendGot(): void {
    if (this.#inFrame || this.#finished || this.#current === undefined) return
    const frame = encodeFrame({ type: 'got', offset: this.received })
    if (frame.length > this.#replay.free) return
    this.#replay.append(frame)
    this.#receivedAcknowledged = this.received
    this.#changed.notify()
  }

  /** The peer has `position` bytes, and before had `least`. */
  #forget(position: number, least: number): void {
    if (position < least || position > this.#mostSent) {
      throw new Fault('FORMAT', `the other end says that it has ${position} bytes, of ${least} to ${this.#mostSent}`)
    }
    if (this.#role === 'sender' && position > this.#replay.from) this.#lastMoved = performance.now()
    this.#replay.forget(position)
    this.#spliced.forget(position)
    this.#changed.notify()
  }

  /** Sends over `link` what is in the buffers, and what comes, until another link takes its place. */
  async #pump(link: Link, greeting: Uint8Array | undefined): Promise<void> {
    this.#pumps++
    try {
      if (greeting !== undefined) await link.outlet.send(greeting)
      for (let waited = false; link === this.#current; ) {
        const unsent = this.#replay.to - this.#sent
        if (unsent === 0) {
          await this.#changed.wait()
          waited = false
        } else if (unsent < WORTH_SENDING && !waited) {
          // What is written in one turn goes out in one piece: else each frame of a small image costs a call at both
          // ends.
          await nextTurn()
          waited = true
        } else {
          await this.#sendNext(link)
          waited = false
          if (link !== this.#current) return
          this.#sent = this.#mostSent
          if (this.#sent === this.#replay.to) this.#changed.notify()
        }
      }
    } catch (reason) {
      this.#drop(link, reason)
    } finally {
      this.#pumps--
      this.#release()
    }
  }

  /** Hands the next bytes to the link, by reference where they are held in pipes. */
  #sendNext({ outlet }: Link): Promise<void> {
    const from = this.#sent
    const range = this.#spliced.rangeAt(from)
    if (range === undefined) {
      const bytes = this.#replay.at(from, Math.min(MOST_AT_ONCE, this.#spliced.nextRange(from) - from))
      this.#mostSent = from + bytes.length
      return outlet.send(bytes, this.#inFrame || this.#mostSent < this.#replay.to)
    }
    if (outlet.splice === undefined) throw new Error('a link that takes no pages by reference, after one that did')
    this.#mostSent = range.to
    return outlet.splice(this.#spliced.pipeFrom(range, from), range.to - from)
  }

  #tick(): void {
    const now = performance.now()
    // Time in which this process did not run is not silence.
    if (now - this.#lastTick > 2 * TICK_MS) this.#lastMoved += now - this.#lastTick
    this.#lastTick = now
    const link = this.#current
    if (this.#role === 'sender' && link !== undefined && this.#replay.from === this.#replay.to) this.#lastMoved = now
    if (now - this.#lastMoved > this.#timeoutMs) this.#giveUp()
    else if (link !== undefined && now - Math.max(this.#lastMoved, this.#lastAttached) > this.quietMs) {
      this.#drop(link, new Fault('LINK', `nothing moved for ${this.quietMs / 1000} s`))
    } else if (this.#sent === this.#replay.to) this.#sendGot()
  }

  #giveUp(): void {
    const { message, hint } = this.#linkFault
    const text = `${message}; the link did not come back within ${this.#timeoutMs / 1000} s`
    this.#end(new Fault(this.#role === 'sender' ? 'LINK' : 'TIMEOUT', text, hint === undefined ? {} : { hint }))
  }

  /** Goes on without `link`, which broke; ends the session where no other link would help. */
  #drop(link: Link, reason: unknown): void {
    if (link !== this.#current) return
    this.#current = undefined
    link.destroy()
    if (reason instanceof Fault) this.#linkFault = reason
    if (this.#stopped !== undefined || this.#finished) this.#end(this.#stopped ?? this.#linkFault)
    else if (!(reason instanceof Fault)) this.#end(reason as Error)
    this.#changed.notify()
  }

  #end(reason: Error): void {
    if (this.over.aborted) return
    clearInterval(this.#timer)
    this.#over.abort(reason)
    this.#current?.destroy(reason)
    this.#current = undefined
    this.#changed.notify()
    this.#release()
  }

  /** Gives the buffers back when the session is over and no pump is still sending from them. */
  #release(): void {
    if (!this.over.aborted || this.#pumps > 0) return
    if (this.#memory !== undefined) giveReplayMemory(this.#memory)
    this.#spliced.close()
  }
}
