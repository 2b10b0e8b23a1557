import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { INVENTORY, imageName, LONGEST_ID, LONGEST_NAME, printable, snapshotId } from '../../lib/format/names.ts'
import { throwsFault } from '../expect.ts'

const test = suite('format/names')

const bad = [
  '',
  '.',
  '..',
  '../x',
  'a/b',
  '/etc/passwd',
  'a\\b',
  '.hidden',
  '-rf',
  '+x',
  'a\0',
  '\0a',
  'a b',
  'a\n',
  '\na',
  'a\r',
  'a\x1b[2J',
  'a\x7f',
  'é.img',
  'a\u202e',
  'a\ud800',
  '~',
  '$HOME',
  'a*',
  'a;b',
  'a%00',
]

test('accepts the names that CRIU gives', () => {
  const names = [
    'inventory.img',
    'pages-1.img',
    'core-8163.img',
    'ip6tables-12.img',
    'tmpfs-dev-0:44.tar.gz.img',
    '_x',
    '9',
  ]
  for (const name of names) assert.is(imageName(name), name)
  assert.is(INVENTORY, imageName('inventory.img'))
})

test('refuses whatever could leave a directory, hide in it or upset a terminal', () => {
  for (const name of bad) {
    throwsFault('NAME', () => imageName(name), JSON.stringify(name))
    throwsFault('NAME', () => snapshotId(name), JSON.stringify(name))
  }
})

test('has a limit for the length', () => {
  assert.is(LONGEST_NAME, 128)
  assert.is(imageName('a'.repeat(128)).length, 128)
  throwsFault('NAME', () => imageName('a'.repeat(129)))
  assert.is(snapshotId('a'.repeat(LONGEST_ID)).length, 64)
  throwsFault('NAME', () => snapshotId('a'.repeat(65)))
})

test('accepts no byte but the listed ones', () => {
  const accepted = Array.from({ length: 256 }, (_, code) => String.fromCharCode(code)).filter((char) => {
    try {
      return imageName(`a${char}`) !== ''
    } catch {
      return false
    }
  })
  assert.is(accepted.join(''), '+-.0123456789:=@ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz')
})

test('shows a refused name without its control characters', () => {
  const { message } = throwsFault('NAME', () => imageName('\x1b[2J\u202eé'))
  assert.is(message, 'image name refused: "\\u001b[2J??"')
  assert.is(printable('a"b\x7f'), '"a\\"b?"')
  assert.is(printable('x'.repeat(81)), `"${'x'.repeat(80)}..."`)
})

test.run()
