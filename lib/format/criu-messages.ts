/**
 * CRIU's small protobuf messages, by the names and numbers of their fields in CRIU's images/*.proto. Pagemaps, which
 * have millions of entries, are decoded by hand in pagemap.ts.
 */
import pb from 'protobufjs/minimal.js'
import { Fault, type FaultCode } from '../fault.ts'

interface FieldTypes {
  uint32: number
  /** Exact up to 2^53; a larger number is no safe integer. */
  uint64: number
  bool: boolean
  string: string
  /** A string that is still to be checked, or a message within this one. */
  bytes: Uint8Array
}

type Field = readonly [number: number, type: keyof FieldTypes]
type Fields = Readonly<Record<string, Field>>
type Values<Message extends Fields> = { [Name in keyof Message]: FieldTypes[Message[Name][1]] }

/** images/stats.proto: `stats_entry` and, within it, `dump_stats_entry`; times are in microseconds. */
export const statsEntry = { dump: [1, 'bytes'] } as const satisfies Fields
export const dumpStatsEntry = {
  freezing_time: [1, 'uint32'],
  frozen_time: [2, 'uint32'],
  memdump_time: [3, 'uint32'],
  memwrite_time: [4, 'uint32'],
} as const satisfies Fields

/** images/inventory.proto: what is read of it. `compress` came after CRIU 4.3. */
export const inventoryEntry = {
  img_version: [1, 'uint32'],
  pre_dump_mode: [9, 'uint32'],
  compress: [15, 'uint32'],
} as const satisfies Fields

/** images/mm.proto: where `mm_entry` has its areas. images/vma.proto: what is read of `vma_entry`. */
export const MM_VMAS = 14
export const vmaEntry = { flags: [6, 'uint32'] } as const satisfies Fields

/** images/img-streamer.proto. */
export const imgStreamerRequestEntry = { filename: [1, 'string'] } as const satisfies Fields
export const imgStreamerReplyEntry = { exists: [1, 'bool'] } as const satisfies Fields

/** images/remote-image.proto, in trees of CRIU between 2017 and June 2020. */
export const localImageEntry = {
  name: [1, 'bytes'],
  snapshot_id: [2, 'bytes'],
  open_mode: [3, 'uint64'],
} as const satisfies Fields
export const remoteImageEntry = { ...localImageEntry, size: [4, 'uint64'] } as const satisfies Fields
export const localImageReplyEntry = { error: [1, 'uint64'] } as const satisfies Fields
export const snapshotIdEntry = { snapshot_id: [1, 'bytes'] } as const satisfies Fields

const wireTypes: Record<keyof FieldTypes, number> = { uint32: 0, uint64: 0, bool: 0, string: 2, bytes: 2 }

/**
 * The fields of a message that are there. Of one that is there twice the last counts; unknown fields, and known ones of
 * another type, are passed over. Throws what protobufjs throws for bytes that are no protobuf.
 */
export function decodeMessage<Message extends Fields>(message: Message, body: Uint8Array): Partial<Values<Message>> {
  const values: Record<string, unknown> = {}
  const reader = pb.Reader.create(body)
  while (reader.pos < reader.len) {
    const tag = reader.uint32()
    const [name, field] = Object.entries(message).find(([, [number]]) => number === tag >>> 3) ?? []
    const type = field?.[1]
    if (name === undefined || type === undefined || (tag & 7) !== wireTypes[type]) reader.skipType(tag & 7)
    else values[name] = type === 'uint64' ? Number(String(reader.uint64())) : reader[type]()
  }
  return values as Partial<Values<Message>>
}

/** The messages of a repeated field. Throws what protobufjs throws for bytes that are no protobuf. */
export function* repeatedMessages(number: number, body: Uint8Array): Generator<Uint8Array> {
  const reader = pb.Reader.create(body)
  while (reader.pos < reader.len) {
    const tag = reader.uint32()
    if (tag === number * 8 + wireTypes.bytes) yield reader.bytes()
    else reader.skipType(tag & 7)
  }
}

/** Like `decodeMessage`, but throws a `Fault` of that code and text. */
export function decodeOrFault<Message extends Fields>(
  code: FaultCode,
  text: string,
  message: Message,
  body: Uint8Array,
): Partial<Values<Message>> {
  try {
    return decodeMessage(message, body)
  } catch (cause) {
    throw new Fault(code, text, { cause })
  }
}

/** The bytes of a message, in the order of its fields. */
export function encodeMessage<Message extends Fields>(message: Message, values: Partial<Values<Message>>): Uint8Array {
  const writer = pb.Writer.create()
  for (const [name, [number, type]] of Object.entries(message)) {
    const value: FieldTypes[keyof FieldTypes] | undefined = values[name]
    if (value === undefined) continue
    writer.uint32(number * 8 + wireTypes[type])
    writer[type](value as never)
  }
  return writer.finish()
}
