import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { onlyFaults, throwsFault } from '../expect.ts'
import {
  type Decoder2015,
  type Event2015,
  getDecoder,
  type Image2015,
  MOST_NAMESPACES,
  putDecoder,
  replyDecoder,
} from './remote-2015.ts'
import { fixtures } from './run.ts'

const test = suite('support/remote-2015')

const folder = join(fixtures, 'remote-2015')

function recorded(name: string): Buffer {
  return Buffer.from(readFileSync(join(folder, `${name}.hex`), 'latin1').replaceAll('\n', ''), 'hex')
}

/** What a connection brings, a body's bytes put together. */
function hear(decoder: Decoder2015, chunks: Iterable<Uint8Array>): (Event2015 | string)[] {
  const heard: (Event2015 | string)[] = []
  const body: Buffer[] = []
  const take = (event: Event2015): void => {
    if (event.kind === 'bytes') return void body.push(Buffer.from(event.bytes))
    if (event.kind === 'imageEnd') heard.push(Buffer.concat(body).toString('latin1'))
    heard.push(event)
  }
  for (const chunk of chunks) for (const event of decoder.push(chunk)) take(event)
  for (const event of decoder.end()) take(event)
  return heard
}

const bytewise = (bytes: Buffer): Buffer[] => Array.from(bytes, (byte) => Buffer.of(byte))

const core = { name: 'core-7.img', namespace: '/tmp/pre-dump' } as Image2015
const inventory = { name: 'inventory.img', namespace: '/tmp/dump' } as Image2015
const both = ['/tmp/pre-dump', '/tmp/dump']
const body24 = 'these are 24 image bytes'

const said: [string, () => Decoder2015, (Event2015 | string)[]][] = [
  ['put-image', putDecoder, [{ kind: 'image', ...core }, body24, { kind: 'imageEnd', bytes: 24 }]],
  ['put-dirty', putDecoder, [{ kind: 'image', ...core }, 'x', { kind: 'imageEnd', bytes: 1 }]],
  [
    'put-empty',
    putDecoder,
    [{ kind: 'image', ...inventory, name: 'pages-1.img' } as Event2015, '', { kind: 'imageEnd', bytes: 0 }],
  ],
  ['put-list', putDecoder, [{ kind: 'list', namespaces: both }]],
  ['put-finish', putDecoder, [{ kind: 'finish' }]],
  ['get-image', getDecoder, [{ kind: 'get', ...inventory }]],
  ['get-list', getDecoder, [{ kind: 'getList' }]],
  [
    'get-image-found',
    () => replyDecoder(inventory),
    [{ kind: 'image', ...inventory }, 'body', { kind: 'imageEnd', bytes: 4 }],
  ],
  ['get-image-missing', () => replyDecoder(inventory), [{ kind: 'missing' }]],
  ['get-list-found', () => replyDecoder('list'), [{ kind: 'list', namespaces: both }]],
  ['get-list-empty', () => replyDecoder('list'), [{ kind: 'list', namespaces: [] }]],
]

for (const [name, decoder, events] of said) {
  test(`${name}: what it says, at once and byte by byte; garbage behind a NUL is no part of it`, () => {
    const bytes = recorded(name)
    assert.equal(hear(decoder(), [bytes]), events)
    assert.equal(hear(decoder(), bytewise(bytes)), events)
  })

  test(`${name} cut at every byte: a cut header or list is no end`, () => {
    const bytes = recorded(name)
    const isList = events.some((event) => typeof event === 'object' && event.kind === 'list')
    for (let cut = 0; cut < bytes.length; cut++) {
      const listen = (): unknown => hear(decoder(), [bytes.subarray(0, cut)])
      if (cut < 64 || (isList && cut % 32 !== 0)) throwsFault('TRUNCATED', listen, `cut at ${cut}`)
      else listen()
    }
  })
}

test('every fixture is among those', () => {
  const files = readdirSync(folder).filter((file) => file.endsWith('.hex'))
  assert.equal(files.sort(), said.map(([name]) => `${name}.hex`).sort())
})

function header(path: string, namespace: string): Buffer {
  const bytes = Buffer.alloc(64)
  bytes.write(path, 0, 32, 'latin1')
  bytes.write(namespace, 32, 32, 'latin1')
  return bytes
}

test('hostile names are refused in every field', () => {
  const names = [
    '',
    '/etc/passwd',
    '../core-7.img',
    'a/b',
    '.hidden',
    'core 7.img',
    'a\x1b[31m',
    '\xff\xfe',
    'x'.repeat(32),
  ]
  for (const name of names) {
    for (const decoder of [putDecoder, getDecoder]) {
      throwsFault('NAME', () => hear(decoder(), [header(name, '/tmp/d')]), JSON.stringify(name))
    }
  }
  for (const name of ['', 'a\nb', '\x1b[31m', '\xff\xfe', '/tmp/'.padEnd(32, 'x')]) {
    throwsFault('NAME', () => hear(putDecoder(), [header('core-7.img', name)]), JSON.stringify(name))
    const list = Buffer.concat([header('parent', 'null'), header(name, name)])
    throwsFault('NAME', () => hear(putDecoder(), [list]), JSON.stringify(name))
  }
  hear(putDecoder(), [header(`${'c'.repeat(31)}`, '/tmp/'.padEnd(31, 'x'))])
})

test('words that mean something are no names of images', () => {
  for (const [path, namespace] of [
    ['parent', '/tmp/d'],
    ['DUMP_FINISH', '/tmp/d'],
    ['core-7.img', 'null'],
  ] as const) {
    throwsFault('FORMAT', () => hear(putDecoder(), [header(path, namespace)]))
    throwsFault('FORMAT', () => hear(getDecoder(), [header(path, namespace)]))
  }
  throwsFault('FORMAT', () => hear(getDecoder(), [header('DUMP_FINISH', 'null')]))
})

test('a list has at most 32 namespaces', () => {
  const list = (count: number): Buffer =>
    Buffer.concat([
      header('parent', 'null'),
      ...Array.from({ length: count }, () => header('/tmp/d', '').subarray(0, 32)),
    ])
  const [full] = hear(putDecoder(), bytewise(list(MOST_NAMESPACES)))
  assert.equal(full, { kind: 'list', namespaces: Array(32).fill('/tmp/d') })
  throwsFault('LIMIT', () => hear(putDecoder(), [list(MOST_NAMESPACES + 1)]))
  throwsFault('LIMIT', () => hear(putDecoder(), bytewise(list(MOST_NAMESPACES + 1))))
})

test('an end with a body, a request that goes on, and an answer for another image are refused', () => {
  const more = Buffer.of(0)
  throwsFault('FORMAT', () => hear(putDecoder(), [recorded('put-finish'), more]))
  throwsFault('FORMAT', () => hear(getDecoder(), [recorded('get-image'), more]))
  throwsFault('FORMAT', () => hear(replyDecoder(inventory), [recorded('get-image-missing'), more]))
  throwsFault('FORMAT', () => hear(replyDecoder(core), [recorded('get-image-found')]))
  throwsFault('FORMAT', () => hear(replyDecoder('list'), [recorded('get-image-found')]))
})

test('random bytes, in random pieces, and recordings with flipped bits end in events or a Fault', () => {
  const decoders = [putDecoder, getDecoder, () => replyDecoder(inventory), () => replyDecoder('list')]
  fc.assert(
    fc.property(
      fc.constantFrom(...decoders),
      fc.constantFrom(...said.map(([name]) => recorded(name))),
      fc.array(fc.tuple(fc.nat(127), fc.integer({ min: 1, max: 255 })), { maxLength: 4 }),
      fc.integer({ min: 1, max: 70 }),
      fc.uint8Array({ maxLength: 100 }),
      (decoder, recording, flips, step, tail) => {
        const bytes = Buffer.concat([recording, tail])
        for (const [at, mask] of flips) if (at < bytes.length) bytes[at] = (bytes[at] as number) ^ mask
        const pieces: Buffer[] = []
        for (let at = 0; at < bytes.length; at += step) pieces.push(bytes.subarray(at, at + step))
        onlyFaults(() => hear(decoder(), pieces))
      },
    ),
    { numRuns: 2000 },
  )
})

test.run()
