/**
 * The messages of `criu --stream` (CRIU 3.15 and later, images/img-streamer.proto): a u32 length in host order, then a
 * protobuf body of one field. There is no magic and no version; which message it is follows from who speaks.
 */
import { Fault } from '../fault.ts'
import { decodeOrFault, encodeMessage, imgStreamerReplyEntry, imgStreamerRequestEntry } from './criu-messages.ts'
import { type ImageName, imageName, LONGEST_NAME } from './names.ts'

export const LENGTH_BYTES = 4
/** A request holds one name: tag, length, name. Leaves room for names that are then refused by name. */
export const LONGEST_REQUEST = 4 * LONGEST_NAME

/** The length of the body that follows. Throws `CRIU_PROTOCOL`. */
export function decodeLength(bytes: Buffer): number {
  const length = bytes.readUInt32LE(0)
  if (length === 0 || length > LONGEST_REQUEST) {
    throw new Fault('CRIU_PROTOCOL', `a request of ${length} bytes, at most ${LONGEST_REQUEST} are allowed`)
  }
  return length
}

/** An `img_streamer_request_entry`. Throws `CRIU_PROTOCOL` or `NAME`. */
export function decodeRequest(body: Uint8Array): ImageName {
  const { filename } = decodeOrFault('CRIU_PROTOCOL', 'a request that is not protobuf', imgStreamerRequestEntry, body)
  if (filename === undefined) throw new Fault('CRIU_PROTOCOL', 'a request without a file name')
  return imageName(filename)
}

export function encodeRequest(name: string): Buffer {
  return framed(encodeMessage(imgStreamerRequestEntry, { filename: name }))
}

/** An `img_streamer_reply_entry`. */
export function encodeReply(exists: boolean): Buffer {
  return framed(encodeMessage(imgStreamerReplyEntry, { exists }))
}

function framed(body: Uint8Array): Buffer {
  const out = Buffer.alloc(LENGTH_BYTES + body.length)
  out.writeUInt32LE(body.length)
  out.set(body, LENGTH_BYTES)
  return out
}
