/**
 * The one error class. Whatever else is thrown is a bug and keeps its stack.
 *
 * A code names what went wrong for programs; the message is for people: lower case, no full stop, and never
 * image contents. The hint is the next thing to type or to look at.
 */
export type FaultCode =
  | 'USAGE' // the command line is wrong
  | 'IO' // a system call on this host failed
  | 'LINK' // the peer cannot be reached, or went away
  | 'TRUNCATED' // the stream ended before its end frame
  | 'TRAILING' // bytes after the end frame
  | 'FORMAT' // bytes that are not what the protocol says
  | 'VERSION' // a protocol version or feature that this release does not know
  | 'NAME' // an image name or snapshot id that is not acceptable
  | 'LIMIT' // a number from the peer above its limit
  | 'DIGEST' // contents differ from what the sender announced
  | 'FAILED_DUMP' // a snapshot without inventory.img: CRIU did not finish
  | 'REFUSED' // the peer said no, with its reason
  | 'EXISTS' // a snapshot or an output of that name is already there
  | 'MISSING' // no such snapshot, image or file
  | 'MEMORY' // the memory bound is reached
  | 'CRIU' // criu failed, or cannot be used
  | 'CRIU_PROTOCOL' // a client of the CRIU socket does not speak the streamer protocol
  | 'TIMEOUT' // nothing happened for the allowed time
  | 'ABORTED' // stopped on request

export class Fault extends Error {
  readonly code: FaultCode
  readonly hint: string | undefined

  constructor(code: FaultCode, message: string, options: { hint?: string | undefined; cause?: unknown } = {}) {
    super(message, { cause: options.cause })
    this.name = 'Fault'
    this.code = code
    this.hint = options.hint
  }
}
