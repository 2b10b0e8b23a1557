/** Where bytes come from: a socket, a pipe, a file, or a Node stream where the kernel's descriptor cannot be used. */
export interface Inlet {
  /**
   * Fills all of `into`, in place. Returns false when the stream ends before the first byte, throws `TRUNCATED` when
   * it ends later, `LINK` when the peer is gone.
   */
  fill(into: Uint8Array): Promise<boolean>
  /** Reads once: at least one byte, 0 at the end. For who must know what came before a link broke. */
  read(into: Uint8Array): Promise<number>
}

/** Where bytes go. One caller at a time. */
export interface Outlet {
  /** Resolves when `bytes` may be reused. `more` says that the next bytes follow at once. Throws `LINK` or `IO`. */
  send(bytes: Uint8Array, more?: boolean): Promise<void>
  /**
   * Where the bytes would be copied before they go out: lets `fill` put them there itself, when there is room. What it returns goes
   * out, the head first; nothing does if it returns undefined.
   */
  fillInPlace?(headBytes: number, most: number, fill: (room: Uint8Array) => Filled | undefined): Promise<void>
  /** What was sent is safe as far as this host can tell, and `bytes` more will fit: for a file. Throws `IO`. */
  settle(bytes: number): Promise<void>
  /** Everything is handed to the kernel; a socket is closed for writing, a pipe or a file by `destroy`. */
  finish(): Promise<void>
}

/** The bytes before what was put in place, `headBytes` of them, and how many bytes that was. */
export interface Filled {
  head: Uint8Array
  bytes: number
}

/** A connection, or one of the two directions of a pipe. */
export interface Link {
  readonly inlet: Inlet
  readonly outlet: Outlet
  /** Whether the peer can answer: false for a pipe or a file. */
  readonly duplex: boolean
  /** For messages: `127.0.0.1:9997`, `stdin`. */
  readonly peer: string
  /** Releases the descriptor; whoever waits is rejected with `reason`. May be called twice. */
  destroy(reason?: Error): void
}

/** Off with FERRY_NO_SPLICE=1: then the link is one of Node's own streams, and CRIU is served by write(). */
export const spliceAllowed = process.env.FERRY_NO_SPLICE !== '1'
