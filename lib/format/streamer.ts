/**
 * The messages of `criu --stream` (CRIU 3.15 and later, images/img-streamer.proto): a u32 length in host order, then a
 * protobuf body of one field. There is no magic and no version; which message it is follows from who speaks.
 */
import pb from 'protobufjs/minimal.js'
import { Fault } from '../fault.ts'
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

/** `img_streamer_request_entry { required string filename = 1; }`. Throws `CRIU_PROTOCOL` or `NAME`. */
export function decodeRequest(body: Uint8Array): ImageName {
  let name: string | undefined
  try {
    const reader = pb.Reader.create(body)
    while (reader.pos < reader.len) {
      const tag = reader.uint32()
      if (tag === 10) name = reader.string()
      else reader.skipType(tag & 7)
    }
  } catch (cause) {
    throw new Fault('CRIU_PROTOCOL', 'a request that is not protobuf', { cause })
  }
  if (name === undefined) throw new Fault('CRIU_PROTOCOL', 'a request without a file name')
  return imageName(name)
}

export function encodeRequest(name: string): Buffer {
  return framed(pb.Writer.create().uint32(10).string(name).finish())
}

/** `img_streamer_reply_entry { required bool exists = 1; }` */
export function encodeReply(exists: boolean): Buffer {
  return framed(pb.Writer.create().uint32(8).bool(exists).finish())
}

/** Whether the file exists. Throws `CRIU_PROTOCOL`. */
export function decodeReply(body: Uint8Array): boolean {
  if (body.length !== 2 || body[0] !== 8) throw new Fault('CRIU_PROTOCOL', 'a reply of another kind')
  return body[1] !== 0
}

function framed(body: Uint8Array): Buffer {
  const out = Buffer.alloc(LENGTH_BYTES + body.length)
  out.writeUInt32LE(body.length)
  out.set(body, LENGTH_BYTES)
  return out
}
