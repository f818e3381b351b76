// Where in a section a piece of code is: the declarations by name, as excerpts of lessons name them.
import type { Node } from "oxc-parser";
import { parse } from "./code.ts";
import { indentOf, isBlank, isComment, type Range } from "./verbatim.ts";

/** A declaration: a top-level one, or a member of it such as `Inbox.add`. */
export interface Place extends Range {
  /** `callModel`, `Inbox`, `Inbox.add`, `Session.#replay`, `HANDLERS.bash`, `command("new")`. */
  name: string;
  isMember: boolean;
}

/** A section as the tools for excerpts see it. */
export interface Code {
  file: string;
  lines: string[];
  /** In their order. A name may be there twice: an interface that each region adds to. */
  places: Place[];
}

/** The name of a key in a class, an interface or an object; "" for a computed one. */
function keyName(key: Node): string {
  if (key.type === "Identifier") return key.name;
  if (key.type === "PrivateIdentifier") return `#${key.name}`;
  return key.type === "Literal" ? String(key.value) : "";
}

/** What has members that can be named: a class, an interface or an object literal. */
type Owner = Node | null | undefined;

function membersOf(owner: Owner): [name: string, member: Node][] {
  if (owner?.type === "ClassDeclaration" || owner?.type === "TSInterfaceDeclaration") {
    return owner.body.body.flatMap((member): [string, Node][] =>
      "key" in member ? [[keyName(member.key), member]] : [],
    );
  }
  if (owner?.type !== "ObjectExpression") return [];
  return owner.properties.flatMap((property): [string, Node][] =>
    property.type === "Property" ? [[keyName(property.key), property]] : [],
  );
}

/** What a call at the top level is named by: `command("new", …)`, `Object.assign(HANDLERS, …)`. */
function calledName(expression: Node): [name: string, owner: Owner][] {
  if (expression.type !== "CallExpression") return [];
  const { callee } = expression;
  const [first, second] = expression.arguments;
  if (callee.type === "Identifier" && first?.type === "Literal") {
    return [[`${callee.name}("${first.value}")`, undefined]];
  }
  if (callee.type !== "MemberExpression") return [];
  if (first?.type === "Identifier") return [[first.name, second]];
  // MIDDLEWARE.unshift(…), TOOLS.push(…)
  return callee.object.type === "Identifier" ? [[callee.object.name, undefined]] : [];
}

/** What a top-level statement declares, with what has its members. */
function declared(statement: Node): [name: string, owner: Owner][] {
  switch (statement.type) {
    case "ExportNamedDeclaration":
      return statement.declaration ? declared(statement.declaration) : [];
    case "VariableDeclaration":
      return statement.declarations.flatMap(({ id, init }): [string, Owner][] =>
        id.type === "Identifier" ? [[id.name, init]] : [],
      );
    case "ExpressionStatement":
      return calledName(statement.expression);
    case "FunctionDeclaration":
    case "ClassDeclaration":
      return statement.id ? [[statement.id.name, statement]] : [];
    case "TSInterfaceDeclaration":
    case "TSTypeAliasDeclaration":
      return [[statement.id.name, statement]];
    default:
      return [];
  }
}

/** Gives the number of the line, from 0, that an offset of the text is in. */
function lineNumbers(lines: string[]): (offset: number) => number {
  const starts: number[] = [];
  let offset = 0;
  for (const line of lines) {
    starts.push(offset);
    offset += line.length + 1;
  }
  return (wanted) => starts.findLastIndex((start) => start <= wanted);
}

/** Reads a section. Windows' line ends make no difference to an excerpt. */
export function readCode(text: string, file: string): Code {
  const source = text.replaceAll("\r\n", "\n");
  const lines = source.split("\n");
  const lineAt = lineNumbers(lines);
  const places: Place[] = [];
  const add = (name: string, node: Node, isMember: boolean) => {
    places.push({ name, isMember, start: lineAt(node.start), end: lineAt(node.end - 1) + 1 });
  };
  for (const statement of parse(source, file).program.body) {
    for (const [name, owner] of declared(statement)) {
      add(name, statement, false);
      for (const [key, member] of membersOf(owner)) {
        if (key !== "") add(`${name}.${key}`, member, true);
      }
    }
  }
  return { file, lines, places };
}

/** A place with the comment that stands directly above it. A banner is not a part of it. */
export function withComment(lines: string[], { start, end }: Range): Range {
  const isOwn = (line = "") => isComment(line) && !/^\/\/ -{2,4} /.test(line);
  let first = start;
  while (isOwn(lines[first - 1])) first -= 1;
  return { start: first, end };
}

/** The smallest place that has all these lines, its comment included. */
export function placeAround({ lines, places }: Code, { start, end }: Range): Place | undefined {
  const around = places.filter((place) => {
    const whole = withComment(lines, place);
    return whole.start <= start && end <= whole.end;
  });
  return around.sort((a, b) => a.end - a.start - (b.end - b.start))[0];
}

/** The place that an excerpt begins with, if it begins with a declaration of its own. */
export function placeBegun({ lines, places }: Code, excerpt: string[]): Place | undefined {
  const first = excerpt.find((line) => !isBlank(line) && !isComment(line)) ?? "";
  const begins = ({ start }: Place) => {
    const line = lines[start] ?? "";
    return line.trim() === first.trim() && indentOf(line) >= indentOf(first);
  };
  return places.find(begins);
}

/** What the first line of an excerpt says: `// in Inbox.add`, `// s02`, `// s02 · in safePath`. */
export function readPlace(line = ""): { section?: string; name?: string } | undefined {
  const [all, section, name] = /^\/\/ (?:(s\d\d)(?: · (?=in )|$))?(?:in (\S+))?$/.exec(line) ?? [];
  if (all === undefined || (!section && !name)) return undefined;
  return { section, name };
}

/** The first line that says so; "" if there is nothing to say. */
export function placeLine(section?: string, name?: string): string {
  const words = [section, name && `in ${name}`].filter(Boolean);
  return words.length === 0 ? "" : `// ${words.join(" · ")}`;
}
